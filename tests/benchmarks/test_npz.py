"""Both `.npz` layouts; damaged and hostile files."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from benchmarks.harness.datasets import load
from benchmarks.harness.errors import BenchmarkError

N = 20


@pytest.fixture
def graph() -> tuple[sp.csr_matrix, sp.csr_matrix, np.ndarray]:
    """Directed adjacency with loops, features, labels that are not 0, 1, ..."""
    rng = np.random.default_rng(0)
    adjacency = sp.csr_matrix((rng.random((N, N)) < 0.2).astype(np.float32))
    features = sp.csr_matrix(rng.random((N, 7)) * (rng.random((N, 7)) < 0.5))
    return adjacency, features, np.array([3, 5] * (N // 2))


def plain(adjacency: sp.csr_matrix, features: sp.csr_matrix, labels: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {"labels": labels}
    for prefix, matrix in (("adj", adjacency), ("attr", features)):
        for part in ("data", "indices", "indptr", "shape"):
            arrays[f"{prefix}_{part}"] = np.asarray(getattr(matrix, part))
    return arrays


def boxed(value: object) -> np.ndarray:
    box = np.empty((), dtype=object)
    box[()] = value
    return box


def check(path: Path, adjacency: sp.csr_matrix, features: sp.csr_matrix) -> None:
    dataset = load(f"npz:{path}", ".")
    dense = adjacency.toarray()
    undirected = ((dense + dense.T) > 0) & ~np.eye(N, dtype=bool)
    degree = undirected.sum(1) + 1
    expected = (undirected + np.eye(N)) / np.sqrt(np.outer(degree, degree))
    np.testing.assert_allclose(dataset.adjacency.to_dense().numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(dataset.x.numpy(), features.toarray(), rtol=1e-6)
    assert dataset.y.tolist() == [0, 1] * (N // 2) and dataset.num_classes == 2
    assert dataset.num_edges == undirected.sum() // 2
    assert dataset.name == f"npz:{path.stem}" and dataset.split is None


def test_plain_arrays(tmp_path: Path, graph):
    np.savez(tmp_path / "g.npz", **plain(*graph))
    check(tmp_path / "g.npz", *graph[:2])


def test_plain_arrays_with_dense_features(tmp_path: Path, graph):
    arrays = {name: value for name, value in plain(*graph).items() if not name.startswith("attr")}
    np.savez(tmp_path / "g.npz", attr_matrix=graph[1].toarray(), **arrays)
    check(tmp_path / "g.npz", *graph[:2])


def test_boxed_matrices(tmp_path: Path, graph):
    adjacency, features, labels = graph
    np.savez(tmp_path / "g.npz", adj_matrix=boxed(adjacency), node_attr=boxed(features), node_label=labels)
    check(tmp_path / "g.npz", adjacency, features)


def test_boxed_adjacency_with_dense_features(tmp_path: Path, graph):
    adjacency, features, labels = graph
    np.savez(tmp_path / "g.npz", adj_matrix=boxed(adjacency), node_attr=features.toarray(), node_label=labels)
    check(tmp_path / "g.npz", adjacency, features)


class Hostile:
    """Makes a folder when it is unpickled without care."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickled_code_is_refused_and_not_run(tmp_path: Path, graph):
    trap = tmp_path / "trap"
    pickle.loads(pickle.dumps(Hostile(trap)))
    assert trap.is_dir()  # the weapon works
    trap.rmdir()
    hostile = graph[0].copy()
    hostile.extra = Hostile(trap)
    for adjacency in (Hostile(trap), hostile):
        np.savez(tmp_path / "g.npz", adj_matrix=boxed(adjacency), node_attr=boxed(graph[1]), node_label=graph[2])
        with pytest.raises(BenchmarkError, match=r"no other pickled objects .*mkdir"):
            load(f"npz:{tmp_path / 'g.npz'}", ".")
        assert not trap.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adj_indices": np.full(3, N)}, "as many values as indices|indptr that rises"),
        ({"adj_indptr": np.zeros(N + 1, dtype=int)}, "indptr that rises"),
        ({"adj_shape": np.array([N, N - 1])}, "column numbers in|adjacency must be"),
        ({"adj_shape": np.array([N - 1, N])}, "indptr that rises"),
        ({"labels": np.arange(N) / 2}, "labels must be a vector of integers"),
        ({"labels": np.zeros((N, 2), dtype=int)}, "labels must be a vector of integers"),
        ({"labels": np.zeros(N + 1, dtype=int)}, "adjacency must be"),
        ({"labels": np.zeros(3, dtype=int)}, "at least 10 nodes"),
        ({"attr_shape": np.array([N, 3])}, "column numbers in"),
        ({"attr_data": None}, "it must hold"),
        ({"adj_indptr": None}, "it must hold"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path: Path, graph, change, message):
    arrays = plain(*graph) | change
    np.savez(tmp_path / "g.npz", **{name: value for name, value in arrays.items() if value is not None})
    with pytest.raises(BenchmarkError, match=message):
        load(f"npz:{tmp_path / 'g.npz'}", ".")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_must_be_finite(tmp_path: Path, graph, value: float):
    graph[1].data[0] = value
    np.savez(tmp_path / "g.npz", **plain(*graph))
    with pytest.raises(BenchmarkError, match="finite"):
        load(f"npz:{tmp_path / 'g.npz'}", ".")


def test_a_negative_column_is_refused(tmp_path: Path, graph):
    graph[0].indices[0] = -1
    np.savez(tmp_path / "g.npz", **plain(*graph))
    with pytest.raises(BenchmarkError, match="column numbers in"):
        load(f"npz:{tmp_path / 'g.npz'}", ".")


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "g.npz").write_bytes(b"text")
    with pytest.raises(BenchmarkError, match=r"not a readable \.npz file"):
        load(f"npz:{tmp_path / 'g.npz'}", ".")


def test_random_splits_are_a_function_of_the_seed(tmp_path: Path, graph):
    np.savez(tmp_path / "g.npz", **plain(*graph))
    dataset = load(f"npz:{tmp_path / 'g.npz'}", ".")
    one, same, other = dataset.split_for(1), dataset.split_for(1), dataset.split_for(2)
    assert [len(part) for part in (one.train, one.valid, one.test)] == [2, 2, 16]
    assert torch.equal(one.test, same.test) and not torch.equal(one.test, other.test)
    assert torch.equal(torch.cat([one.train, one.valid, one.test]).sort().values, torch.arange(N))
