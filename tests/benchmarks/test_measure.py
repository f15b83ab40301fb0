"""Saved bytes of models one can count by hand; peak memory against an allocation of known size."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch_geometric.nn import GCN2Conv

from benchmarks.harness.measure import PeakMemory, measure_saved_bytes, stopwatch
from benchmarks.harness.model import GCN2
from benchmarks.harness.propagation import use_symmetric_product

N, C = 60, 8
UNIT = N * C * 4  # one fp32 activation


def test_two_linear_layers_and_a_relu():
    model = nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C))
    x = torch.randn(N, C)
    # Kept: x (not counted when excluded) and the ReLU's output, once although ReLU and Linear both keep it.
    assert measure_saved_bytes(model, lambda: model(x).sum(), [x]).total == UNIT
    assert measure_saved_bytes(model, lambda: model(x).sum(), []).total == 2 * UNIT
    assert measure_saved_bytes(model, lambda: model(x).sum(), []).convolutions == 0


def test_storages_freed_in_between_are_not_taken_for_one():
    x = torch.randn(N, C, requires_grad=True)

    def forward() -> torch.Tensor:
        return sum((x * i).square().sum() for i in range(1, 6))

    assert measure_saved_bytes(nn.Module(), forward, [x]).total == 5 * UNIT


def test_views_count_their_storage_once():
    x = torch.randn(N, C, requires_grad=True)

    def forward() -> torch.Tensor:
        y = x * 1
        return y[:10].square().sum() + y[10:20].square().sum()

    assert measure_saved_bytes(nn.Module(), forward, [x]).total == UNIT


def test_sparse_tensors_count_all_their_parts(tiny):
    x = torch.randn(N, C, requires_grad=True)
    adjacency = tiny.adjacency
    crow, col, values = adjacency.crow_indices(), adjacency.col_indices(), adjacency.values()
    expected = 8 * crow.numel() + 8 * col.numel() + 4 * values.numel()
    counted = measure_saved_bytes(nn.Module(), lambda: torch.sparse.mm(adjacency, x).sum(), [x])
    assert counted.total == expected
    assert measure_saved_bytes(nn.Module(), lambda: (adjacency @ x).sum(), [x, adjacency]).total == 0


def test_a_stock_convolution_keeps_two_units(tiny):
    conv = use_symmetric_product(GCN2Conv(C, 0.5, shared_weights=False, normalize=False))
    x, x_0 = (torch.randn(N, C, requires_grad=True) for _ in range(2))
    saved = measure_saved_bytes(conv, lambda: conv(x, x_0, tiny.adjacency).sum(), [x, tiny.adjacency])
    assert saved.convolutions == saved.total == 2 * UNIT  # propagated x, alpha * x_0


def test_the_whole_network(tiny):
    layers = 3
    model = GCN2(5, C, 3, num_layers=layers, dropout=0.1)
    split = tiny.split_for(0)

    def forward() -> torch.Tensor:
        return F.cross_entropy(model(tiny.x, tiny.adjacency)[split.train], tiny.y[split.train])

    saved = measure_saved_bytes(model, forward, [tiny.x, tiny.y, tiny.adjacency, split.train])
    assert saved.convolutions == layers * 2 * UNIT
    # A block: 2 units in the convolution, BatchNorm's input, ReLU's output, dropout's fp32 mask on CPU.  Before them:
    # x_0 and its dropout's mask; the last dropout's output feeds the last Linear.  What is left is smaller than a unit.
    blocks = layers * 5 * UNIT + 2 * UNIT + UNIT
    features = tiny.x.numel() * 4  # the first Linear keeps its input, the dropped features
    rest = saved.total - blocks - features
    assert 0 <= rest < UNIT


def test_hooks_are_gone_afterwards(tiny):
    conv = use_symmetric_product(GCN2Conv(C, 0.5, normalize=False))
    x = torch.randn(N, C, requires_grad=True)

    def fail() -> torch.Tensor:
        conv(x, x, tiny.adjacency)
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        measure_saved_bytes(conv, fail, [])
    assert not conv._forward_hooks and not conv._forward_pre_hooks


def test_peak_memory_sees_an_allocation():
    peak = PeakMemory(torch.device("cpu"))
    peak.start()
    size = 64 * 2**20
    block = torch.ones(size // 4)
    del block
    measured = peak.read_bytes()
    if measured is None:
        assert peak.definition == "not available on this system"
    else:
        assert 0.9 * size < measured < 1.5 * size
        peak.start()
        assert peak.read_bytes() < size // 2


def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.harness.measure.reset_high_water_mark", lambda: False)
    peak = PeakMemory(torch.device("cpu"))
    peak.start()
    assert peak.read_bytes() is None and peak.definition == "not available on this system"


def test_stopwatch_appends():
    times: list[float] = []
    for _ in range(2):
        with stopwatch(torch.device("cpu"), times):
            pass
    assert len(times) == 2 and all(0 <= value < 1 for value in times)
