"""Evaluation layer by layer is that of the whole graph at once."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.layerwise import evaluate, logits_by_chunk, peak_bytes, rows_of
from benchmarks.harness.live_bytes import LiveBytes
from benchmarks.harness.propagation import normalized_adjacency
from benchmarks.harness.train import build_model

CPU = torch.device("cpu")


def full_logits(model: torch.nn.Module, data: NodeDataset, device: torch.device, chunk: int) -> torch.Tensor:
    return torch.cat(list(logits_by_chunk(model, data, device, chunk)))


@pytest.mark.parametrize("method", ["baseline", "rmm", "rmm-lean", "exact", "checkpoint"])
@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
def test_logits_are_those_of_the_full_batch(make_run, tiny, method: str, chunk: int):
    model = build_model(make_run(method=(method,), layers=3, theta=0.5, dropout=0.5), 5, 3)
    for norm in model.norms:  # as after training
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        expected = model.eval()(tiny.x, tiny.adjacency)
    torch.testing.assert_close(full_logits(model.train(), tiny, CPU, chunk), expected)
    assert not model.training


def test_scores_are_those_of_the_data_set(make_run, tiny):
    model, split = build_model(make_run(), 5, 3), tiny.split_for(0)
    logits = full_logits(model, tiny, CPU, 16)
    expected = [tiny.evaluate(logits, split.valid), tiny.evaluate(logits, split.test)]
    assert evaluate(model, tiny, CPU, 16, split.valid, split.test) == expected


class Peak(LiveBytes):
    """The most that lived at once of what was made."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = super().__torch_dispatch__(func, types, args, kwargs)
        self._born = {reference: born for reference, born in self._born.items() if not reference.expired()}
        self.most = max(self.most, sum(size for size, _ in self._born.values()))
        return out


@pytest.mark.parametrize("classes", [3, 400], ids=["few classes", "many classes"])
def test_the_peak_is_what_is_said(make_run, classes: int):
    nodes, channels, chunk = 2000, 16, 50
    edges = torch.randint(nodes, (2, 2 * nodes), generator=torch.Generator().manual_seed(0))
    y, adjacency = torch.arange(nodes) % classes, normalized_adjacency(edges, nodes)
    data = NodeDataset("made", "made", torch.randn(nodes, 5), y, adjacency, classes)
    model = build_model(make_run(hidden=channels, layers=3), 5, classes)
    split = data.split_for(0)
    with Peak() as peak:
        evaluate(model, data, CPU, chunk, split.valid, split.test)
    said = peak_bytes(nodes, channels, classes, chunk)
    # A chunk's matrix, and a few of its activations while a layer runs.
    running = 8 * 4 * chunk * channels + 12 * 3 * data.adjacency.values().numel() * chunk // nodes
    assert 3 * 4 * nodes * channels < peak.most <= said + running
    assert running < 4 * nodes * channels  # or a fourth matrix would not be seen


@pytest.mark.parametrize("part", [slice(0, 4), slice(4, 11), slice(59, 60)])
def test_rows_of_a_matrix_with_and_without_columns_that_are_not_read(tiny, part: slice):
    whole = tiny.adjacency.to_dense()
    rows, read = rows_of(tiny.adjacency, part, compact=False)
    assert read is None and torch.equal(rows.to_dense(), whole[part])
    rows, read = rows_of(tiny.adjacency, part, compact=True)
    assert rows.shape[1] == len(read) < tiny.num_nodes and torch.equal(rows.to_dense(), whole[part][:, read])


@pytest.mark.cuda
def test_on_another_device(make_run, tiny):
    model = build_model(make_run(), 5, 3)
    expected = full_logits(model, tiny, CPU, 60)
    there = full_logits(model.cuda(), tiny, torch.device("cuda"), 7)
    torch.testing.assert_close(there, expected, rtol=1e-4, atol=1e-5)
