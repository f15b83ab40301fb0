"""Small inputs made on the spot: no test here needs shared data, a GPU or a network."""

from __future__ import annotations

import gzip
import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness.config import Sweep, resolve
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.propagation import normalized_adjacency
from benchmarks.harness.run_config import RunConfig

# What the extra `benchmarks` brings, as it is imported.
EXTRA = ("ogb", "sklearn", "scipy", "matplotlib", "tabulate", "tqdm")
NUM_NODES = 60
MIB = 2**20
# The least that a line of records.jsonl has.
NO_RUN = {"schema": 3, "key": "of no run", "config": {}, "results": {}}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without the extra `benchmarks` these tests are skipped; under `--fail-on-skip` that fails the run."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        skip = pytest.mark.skip(reason=f"needs the extra 'benchmarks' ({', '.join(missing)} not installed)")
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(skip)


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


def record(method: str, seed: int, accuracy: float, saved: int = 8 * MIB, **changes: object) -> dict:
    """One finished run, as `records.jsonl` would give it back."""
    sketch, rate, settings = ("count_sketch", 0.1, "count_sketch 0.1 fp32") if method == "rmm" else (None, None, "")
    config = {
        "method": method, "sketch": sketch, "rate": rate, "seed": seed, "layers": 2, "hidden": 8, "epochs": 3,
        "device": "cpu", "bn_momentum": 0.1,
    }  # fmt: skip
    made = {
        "key": f"{method} {seed}",
        "features_are_stand_ins": False,
        "dataset": {
            "title": "tiny", "num_nodes": 1000, "num_edges": 2000, "num_features": 5, "num_classes": 3,
            "split": "the published split",
        },
        "config": config,
        "settings": settings,
        "theory": {"bytes_per_node_layer": 100 if sketch else 136, "stock_bytes_per_node_layer": 136},
        "environment": {
            "device": "a processor", "threads": 2, "git_sha": "0123456789abcdef", "git_dirty": False,
            "packages": {"torch": "2", "torch-geometric": "3"},
        },
        "results": {
            "test_accuracy": accuracy, "saved_convolutions_bytes": saved, "saved_total_bytes": 2 * saved,
            "saved_host_bytes": None, "peak_bytes": 4 * saved, "peak_definition": "what is counted", "epoch_s": 0.25,
        },
        "curves": {"epochs": [1, 2, 3], "test": [0.1, 0.2, accuracy]},
    }  # fmt: skip
    return made | changes


@pytest.fixture
def records() -> list[dict]:
    return [
        record("baseline", 0, 0.70), record("rmm", 0, 0.69, 2 * MIB), record("baseline", 1, 0.72),
        record("rmm", 1, 0.72, 2 * MIB), record("baseline", 2, 0.71), record("rmm", 2, 0.73, 2 * MIB),
    ]  # fmt: skip
