"""Small inputs made on the spot: no test here needs shared data, a GPU or a network."""

from __future__ import annotations

import gzip
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness.config import RunConfig, Sweep, resolve
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.propagation import normalized_adjacency

NUM_NODES = 60


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch):
    """Every connection and every question on standard input fails the test that makes it."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("the network or standard input was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("builtins.input", refuse)


@pytest.fixture
def random_edges() -> torch.Tensor:
    """Directed, with repetitions and loops [2, 240]."""
    return torch.randint(NUM_NODES, (2, 240), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def tiny(random_edges: torch.Tensor) -> NodeDataset:
    """60 nodes, 5 features, 3 classes, no published split."""
    generator = torch.Generator().manual_seed(1)
    return NodeDataset(
        name="tiny",
        title="tiny",
        x=torch.randn(NUM_NODES, 5, generator=generator),
        y=torch.arange(NUM_NODES) % 3,
        adjacency=normalized_adjacency(random_edges, NUM_NODES),
        num_classes=3,
    )


@pytest.fixture
def make_run() -> Callable[..., RunConfig]:
    """The first run of a tiny sweep; keywords are fields of `Sweep`."""

    def make(**given: object) -> RunConfig:
        small = {"method": ("baseline",), "layers": 2, "hidden": 8, "epochs": 4}
        return resolve(small | given).expand("", "cpu")[0]

    return make


@pytest.fixture
def protocol() -> Sweep:
    return resolve({})


@pytest.fixture
def ogb_root(tmp_path: Path) -> Path:
    """A folder in OGB's own format with a graph of 60 nodes in the place of ogbn-arxiv."""
    rng = np.random.default_rng(0)
    edges = rng.integers(NUM_NODES, size=(150, 2))
    order = rng.permutation(NUM_NODES)
    tables = {
        "raw/edge": edges,
        "raw/node-feat": rng.normal(size=(NUM_NODES, 128)).round(3),
        "raw/node-label": np.arange(NUM_NODES)[:, None] % 40,
        "raw/node_year": np.full((NUM_NODES, 1), 2017),
        "raw/num-node-list": np.array([[NUM_NODES]]),
        "raw/num-edge-list": np.array([[len(edges)]]),
        "split/time/train": order[:30, None],
        "split/time/valid": order[30:40, None],
        "split/time/test": order[40:, None],
    }
    folder = tmp_path / "root" / "ogbn_arxiv"
    for name, table in tables.items():
        path = folder / f"{name}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            np.savetxt(file, table, delimiter=",", fmt="%d" if table.dtype.kind == "i" else "%.3f")
    (folder / "RELEASE_v1.txt").write_text("")
    return tmp_path / "root"
