"""The count of what lives: against hand counts, against the hooks, and where the hooks see nothing."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness.live_bytes import LiveBytes
from benchmarks.harness.measure import measure_saved_bytes
from benchmarks.harness.model import GCN2
from benchmarks.harness.offload import offload

N, C = 60, 8
UNIT = N * C * 4


def test_what_is_kept_lives_and_what_is_dropped_does_not():
    x = torch.randn(N, C, requires_grad=True)
    live = LiveBytes()
    with live:
        loss = (x.exp() * 2).sum()  # exp keeps its output; the product by a number keeps nothing
    assert live.read("cpu", loss) == UNIT
    assert live.read("cpu") == UNIT + 4 and live.read("cuda") == 0
    del loss
    assert live.read("cpu") == 0


def test_views_and_tensors_that_were_there_are_not_counted():
    x = torch.randn(N, C)
    live = LiveBytes()
    with live:
        held = [x.t(), x[3:], x.mul_(2), x.view(-1)]
        made = x + 1
        held += [made.t(), made.relu_()]
    assert live.read("cpu") == UNIT and held


def test_closures_and_attributes_are_seen():
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.hidden = x * 2
            return x.sum()

        @staticmethod
        def backward(ctx, grad_output):
            return grad_output * ctx.hidden

    x = torch.randn(N, C, requires_grad=True)
    live = LiveBytes()

    def forward() -> Tensor:
        with live:
            return Hidden.apply(x)

    assert measure_saved_bytes(nn.Module(), forward, []).total == 0
    with live:
        loss = Hidden.apply(x)
    assert live.read("cpu", loss) == UNIT


def loss_of(model: nn.Module, tiny) -> Tensor:
    return F.cross_entropy(model(tiny.x, tiny.adjacency), tiny.y)


def test_the_stock_network_agrees_with_the_hooks(tiny):
    model, live, counts = GCN2(5, C, 3, num_layers=3, dropout=0.1), LiveBytes(), []

    def forward() -> Tensor:
        with live:
            loss = loss_of(model, tiny)
        counts.append(live.read("cpu", loss))
        return loss

    saved = measure_saved_bytes(model, forward, [tiny.x, tiny.y, tiny.adjacency])
    assert counts == [saved.total]


@pytest.mark.parametrize("context", [nullcontext, lambda: offload("cpu")], ids=["plain", "offload"])
def test_offload_on_cpu_moves_nothing_and_changes_nothing(tiny, context):
    torch.manual_seed(0)
    model, live = GCN2(5, C, 3, num_layers=2, dropout=0.1), LiveBytes()
    with live, context():
        loss = loss_of(model, tiny)
    kept = live.read("cpu", loss)
    loss.backward()
    torch.manual_seed(0)
    stock = GCN2(5, C, 3, num_layers=2, dropout=0.1)
    loss_of(stock, tiny).backward()
    assert kept > 2 * 5 * UNIT
    for parameter, expected in zip(model.parameters(), stock.parameters(), strict=True):
        assert torch.equal(parameter.grad, expected.grad)


def test_offload_leaves_the_adjacency_in_its_place(tiny, monkeypatch):
    moved: list[Tensor] = []
    monkeypatch.setattr(Tensor, "cpu", lambda self: moved.append(self) or self)
    with offload("cpu"):
        loss = loss_of(GCN2(5, C, 3, num_layers=2), tiny)
    loss.backward()
    assert moved and all(tensor.layout == torch.strided for tensor in moved)


@pytest.mark.cuda
def test_offload_leaves_nothing_on_the_device(tiny):
    data, live = tiny.to("cuda"), LiveBytes()
    model = GCN2(5, C, 3, num_layers=2, dropout=0.1).cuda()
    with live, offload("cuda"):
        loss = loss_of(model, data)
    assert live.read("cuda", loss) < UNIT
    assert live.read("cpu", loss) > 2 * 4 * UNIT
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
