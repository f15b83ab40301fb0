"""Cora, CiteSeer and PubMed with their public split, read from the published pickles without running what they ask for.

PyG's own loader unpickles the raw files without restriction, and falls back to that for its ``processed`` file.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.datasets.base import NodeDataset, Split
from benchmarks.harness.datasets.checks import checked
from benchmarks.harness.datasets.safe_npz import check_dense
from benchmarks.harness.datasets.safe_pickle import Csr, CsrShell, read_pickle
from benchmarks.harness.datasets.staging import download_into, missing_files
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.propagation import normalized_adjacency

NAMES = {name.lower(): name for name in ("Cora", "CiteSeer", "PubMed")}
PICKLED = ("x", "tx", "allx", "y", "ty", "ally", "graph")
NUM_VALID = 500


def load_planetoid(name: str, root: Path, download: bool = False) -> NodeDataset:
    """Read ``ROOT/NAME/raw/ind.name.*``; features as published, without row normalisation.

    Args:
        name: Cora, CiteSeer or PubMed, in any case.
        root: Folder above NAME.
        download: Fetch the published files when the folder is not there.

    Returns:
        The data set with its public split.

    Raises:
        BenchmarkError: When the name is unknown, or files are missing, unreadable, or hold pickled code.
    """
    if name.lower() not in NAMES:
        raise BenchmarkError(
            f"'dataset' must be planetoid: and one of {', '.join(NAMES.values())} (got '{name}'). Choose one of them."
        )
    name = NAMES[name.lower()]
    folder = root / name
    files = [f"ind.{name.lower()}.{part}" for part in (*PICKLED, "test.index")]
    missing = missing_files(folder, [f"raw/{file}" for file in files])
    if missing and not download:
        state = f"lacks {', '.join(missing)}" if folder.is_dir() else "does not exist"
        raise BenchmarkError(
            f"The {name} data are not there: '{folder.absolute()}' {state}.\n"
            "  To fetch them, add --download.\n"
            f"  If you have them, put them in '{folder / 'raw'}', or "
            f"name the folder above '{name}' with --root.\n"
            "  To run on data that come with scikit-learn instead:\n"
            "      python benchmarks/ogbn_arxiv.py --dataset digits --rate 0.1"
        )
    if missing:
        download_into(folder, lambda temporary: _fetch(temporary / name / "raw", files))
    try:
        made = _read(folder / "raw", name)
    except (ValueError, OSError) as error:
        raise BenchmarkError(
            f"'{folder.absolute()}' could not be read ({type(error).__name__}: {error}). Get the files again."
        ) from error
    return checked(made, folder.absolute())


def _fetch(folder: Path, files: list[str]) -> None:
    from torch_geometric.data import download_url
    from torch_geometric.datasets import Planetoid

    folder.mkdir(parents=True)
    with contextlib.redirect_stdout(sys.stderr):
        for file in files:
            download_url(f"{Planetoid.url}/{file}", str(folder))


def _read(folder: Path, name: str) -> NodeDataset:
    def unpickled(part: str) -> Any:
        with (folder / f"ind.{name.lower()}.{part}").open("rb") as stream:
            return read_pickle(stream, f"ind.{name.lower()}.{part}")

    test = _numbers(folder / f"ind.{name.lower()}.test.index")
    known_x, test_x = _features("allx", unpickled("allx")), _features("tx", unpickled("tx"))
    known_y, test_y = _classes("ally", unpickled("ally")), _classes("ty", unpickled("ty"))
    num_train, first = len(_classes("y", unpickled("y"))), len(known_x)
    num_nodes = int(test.max()) + 1
    if int(test.min()) != first or len(test) != len(test_x) or len(set(test.tolist())) != len(test):
        raise ValueError(f"the test nodes must follow the {first} others, once each (got {test.min()} to {test.max()})")
    if (len(known_y), len(test_y)) != (first, len(test)) or num_train + NUM_VALID > first:
        raise ValueError("features and classes must be of the same nodes, and leave 500 of them for validation")
    if num_nodes > 10 * (first + len(test)) or known_x.shape[1] != test_x.shape[1]:
        raise ValueError(f"the test nodes must have the others' features and number few gaps (got up to {num_nodes})")
    # A few numbers of CiteSeer belong to no test node: nodes without features, edges and class.
    x, y = torch.zeros(num_nodes, known_x.shape[1]), torch.zeros(num_nodes, max(1, known_y.shape[1]))
    x[:first], y[:first] = known_x, known_y
    x[test], y[test] = test_x, test_y
    return NodeDataset(
        name=f"planetoid:{name}",
        title=name,
        x=x,
        y=y.argmax(1),
        adjacency=normalized_adjacency(_edges(unpickled("graph"), num_nodes), num_nodes),
        num_classes=y.shape[1],
        split=Split(torch.arange(num_train), torch.arange(num_train, num_train + NUM_VALID), test.sort().values),
    )


def _numbers(path: Path) -> Tensor:
    lines = path.read_text(encoding="ascii", errors="replace").split()
    if not lines or not all(line.isdecimal() and len(line) < 10 for line in lines):
        raise ValueError(f"'{path.name}' must hold one node number a line")
    return torch.tensor([int(line) for line in lines])


def _features(name: str, value: Any) -> Tensor:
    if not isinstance(value, CsrShell):
        raise ValueError(f"'{name}' must be one CSR matrix (got {type(value).__name__})")
    matrix = Csr.of_shell(name, value)
    check_dense(name, matrix.shape)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    dense = torch.zeros(matrix.shape)
    places = (torch.from_numpy(rows), torch.from_numpy(matrix.indices))
    dense.index_put_(places, torch.from_numpy(matrix.data.astype(np.float32)), accumulate=True)
    return dense


def _classes(name: str, value: Any) -> Tensor:
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "biuf" or value.shape[1] < 1:
        raise ValueError(f"'{name}' must be a matrix of numbers, a column for each class (got {type(value).__name__})")
    if not np.isfinite(value).all():
        raise ValueError(f"'{name}' must hold finite numbers (got inf or nan)")
    return torch.from_numpy(value.astype(np.float32))


def _edges(graph: Any, num_nodes: int) -> Tensor:
    if not isinstance(graph, dict) or not all(isinstance(ends, list) for ends in graph.values()):
        raise ValueError(f"'graph' must be a dictionary of lists of nodes (got {type(graph).__name__})")
    edges = [(start, end) for start, ends in graph.items() for end in ends]
    for edge in edges:
        if not all(type(node) is int and 0 <= node < num_nodes for node in edge):
            raise ValueError(f"'graph' must name nodes in [0, {num_nodes}) (got {edge})")
    return torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()
