"""Digits and Planetoid."""

from __future__ import annotations

import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from benchmarks.harness.datasets import load
from benchmarks.harness.datasets.base import NodeDataset


def test_digits():
    dataset = load("digits", "absent")
    assert dataset.x.shape == (1797, 64) and dataset.x.min() == 0 and dataset.x.max() == 1
    assert dataset.num_classes == 10 and not dataset.features_are_stand_ins
    degree = dataset.adjacency.crow_indices().diff() - 1
    assert degree.min() >= 10  # ten neighbours of its own, and those that chose it
    split = dataset.split_for(0)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [179, 718, 900]
    assert dataset.fingerprint == load("digits", "absent").fingerprint


def write_planetoid(folder: Path) -> None:
    """1700 nodes in the files of Cora's format, the last thousand of them test nodes."""
    rng = np.random.default_rng(0)
    known, test, width = 700, 1000, 4

    def features(count: int) -> sp.csr_matrix:
        return sp.csr_matrix((rng.random((count, width)) < 0.5).astype(np.float32))

    def classes(count: int) -> np.ndarray:
        return np.eye(3, dtype=np.int32)[np.arange(count) % 3]

    graph = defaultdict(list, {node: [(node + 1) % (known + test)] for node in range(known + test)})
    parts = {
        "x": features(60),
        "y": classes(60),
        "allx": features(known),
        "ally": classes(known),
        "tx": features(test),
        "ty": classes(test),
        "graph": graph,
    }
    folder.mkdir(parents=True)
    for name, value in parts.items():
        (folder / f"ind.cora.{name}").write_bytes(pickle.dumps(value, protocol=2))
    lines = "".join(f"{node}\n" for node in range(known, known + test))
    (folder / "ind.cora.test.index").write_text(lines)


def test_planetoid(tmp_path: Path):
    write_planetoid(tmp_path / "Cora" / "raw")
    dataset = load("planetoid:cora", tmp_path)
    assert dataset.name == "planetoid:Cora" and dataset.x.shape == (1700, 4) and dataset.num_classes == 3
    assert dataset.num_edges == 1700  # a ring
    split = dataset.split_for(3)
    assert torch.equal(split.train, torch.arange(60)) and torch.equal(split.test, torch.arange(700, 1700))
    assert len(split.valid) == 500


def test_a_fingerprint_changes_with_every_part(tiny: NodeDataset):
    from dataclasses import replace

    changed = [
        replace(tiny, x=tiny.x + 1),
        replace(tiny, y=tiny.y.flip(0)),
        replace(tiny, adjacency=tiny.adjacency * 2),
        replace(tiny, split=tiny.split_for(0)),
        replace(tiny, random_percent=(20, 20)),
    ]
    assert len({dataset.fingerprint for dataset in (tiny, *changed)}) == 6
    assert replace(tiny, x=tiny.x.clone()).fingerprint == tiny.fingerprint
