"""Attributed graphs in one ``.npz`` file, the two layouts that are common.

Plain: ``adj_data, adj_indices, adj_indptr, adj_shape``, the same with ``attr_`` (or a dense ``attr_matrix``),
and ``labels``.  Boxed: ``adj_matrix`` and ``node_attr`` each hold one pickled scipy CSR matrix (or a dense
array), and ``node_label`` the classes.  Published files have no split, so every seed draws its own of
10 / 10 / 80 %.
"""

from __future__ import annotations

import lzma
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.datasets.safe_npz import check_dense, read_entry
from benchmarks.harness.datasets.safe_pickle import Csr
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.propagation import normalized_adjacency

# What the modules that unpack raise over a damaged file, an encrypted one, or a method of compression they lack.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, KeyError, RuntimeError, MemoryError)
MIN_NODES = 10  # so that a 10 % part is not empty


def load_npz(path: Path) -> NodeDataset:
    """Read one file.

    Edges are made undirected and unweighted and lose their self-loops before the usual normalisation; classes
    are renumbered 0, 1, ... in order.

    Args:
        path: The ``.npz`` file.

    Returns:
        The data set; its name carries the file's name, not its folder.

    Raises:
        BenchmarkError: When the file is missing, of another layout, damaged, or holds pickled code.
    """
    try:
        there = path.is_file()
    except OSError:  # no file can have such a name
        there = False
    if not there:
        raise BenchmarkError(f"'{path.absolute()}' is not a file. Give the .npz file as npz:PATH.")
    try:
        with zipfile.ZipFile(path) as archive:
            adjacency, features, labels = _entries(archive)
        num_nodes = len(labels)
        row, col = _edges(adjacency, num_nodes)
        x = _dense(features, num_nodes)
    except ValueError as error:
        raise BenchmarkError(f"'{path}' cannot be used: {error}") from error
    except _UNREADABLE as error:
        raise BenchmarkError(f"'{path}' is not a readable .npz file ({error}). Get it again.") from error
    classes, y = np.unique(labels, return_inverse=True)
    return NodeDataset(
        name=f"npz:{path.stem}",
        title=path.stem,
        x=torch.from_numpy(x),
        y=torch.from_numpy(y.astype(np.int64)),
        adjacency=normalized_adjacency(torch.from_numpy(np.stack([row, col]).astype(np.int64)), num_nodes),
        num_classes=len(classes),
    )


def _entries(archive: zipfile.ZipFile) -> tuple[Any, Any, np.ndarray]:
    names = {name.removesuffix(".npy") for name in archive.namelist()}
    if {"adj_matrix", "node_attr", "node_label"} <= names:
        adjacency, features = read_entry(archive, "adj_matrix"), read_entry(archive, "node_attr")
        labels = read_entry(archive, "node_label")
    elif {"adj_indices", "adj_indptr", "adj_shape", "labels"} <= names and names & {
        "attr_matrix",
        "attr_data",
    }:
        adjacency = _plain_csr(archive, "adj", names)
        features = read_entry(archive, "attr_matrix") if "attr_matrix" in names else _plain_csr(archive, "attr", names)
        labels = read_entry(archive, "labels")
    else:
        raise ValueError(
            "it must hold adj_data, adj_indices, adj_indptr, adj_shape, attr_* and labels, or adj_matrix, "
            f"node_attr and node_label (got {', '.join(sorted(names)) or 'nothing'}). "
            "Convert it to one of these layouts."
        )
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"the labels must be a vector of integers (got {_describe(labels)}). Give one per node.")
    if len(labels) < MIN_NODES:
        raise ValueError(f"there must be at least {MIN_NODES} nodes (got {len(labels)}). Use a larger graph.")
    return adjacency, features, labels


def _plain_csr(archive: zipfile.ZipFile, prefix: str, names: set[str]) -> Csr:
    parts = {}
    for part in ("data", "indices", "indptr", "shape"):
        if f"{prefix}_{part}" not in names:
            raise ValueError(f"'{prefix}_{part}' must be there (got {', '.join(sorted(names))}). Add it.")
        parts[part] = read_entry(archive, f"{prefix}_{part}")
    return Csr.checked(prefix, **parts)


def _edges(adjacency: Any, num_nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column numbers of the non-zero entries."""
    if adjacency.shape != (num_nodes, num_nodes):
        raise ValueError(
            f"the adjacency must be {num_nodes} x {num_nodes}, one row per label (got shape "
            f"{adjacency.shape}). Check the file."
        )
    if isinstance(adjacency, np.ndarray):
        row, col = _numeric(adjacency, "adjacency").nonzero()
        return row, col
    row = np.repeat(np.arange(num_nodes), np.diff(adjacency.indptr))
    keep = adjacency.data != 0
    return row[keep], adjacency.indices[keep]


def _dense(features: Any, num_nodes: int) -> np.ndarray:
    """Features as a finite fp32 array [N, F]."""
    if len(features.shape) != 2 or features.shape[0] != num_nodes or features.shape[1] < 1:
        raise ValueError(
            f"the features must be [{num_nodes}, F] with F at least 1, one row per label (got shape "
            f"{features.shape}). Check the file."
        )
    if isinstance(features, np.ndarray):
        return np.ascontiguousarray(_numeric(features, "features"), dtype=np.float32)
    check_dense("features", features.shape)
    matrix = require("scipy.sparse").csr_matrix((features.data, features.indices, features.indptr), features.shape)
    return np.asarray(matrix.astype(np.float32).toarray())


def _numeric(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise ValueError(f"the {name} must be finite numbers (got {_describe(array)}). Check the file.")
    return array


def _describe(value: Any) -> str:
    return f"{value.dtype}, shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
