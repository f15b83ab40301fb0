"""The measured bytes: known by hand, raised by what is really allocated, deaf to what was there before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rmm_gnn.diagnostics import memory_report
from rmm_gnn.diagnostics.peak import measure_step
from tests.diagnostics.models import KIB, Expression

MIB = 2**20
SIZE = MIB // 4  # float32 numbers in a MiB
CPU = {torch.device("cpu")}


def scratch(where: str, mebibytes: int) -> type[torch.autograd.Function]:
    """An identity that needs memory for a moment."""

    class Scratch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if where == "forward":
                torch.zeros(mebibytes * SIZE)
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            if where == "backward":
                torch.zeros(mebibytes * SIZE)
            return grad

    return Scratch


def test_by_hand():
    """exp keeps its MiB; backward makes the gradient, one more; the gradient of the sum is one expanded number."""
    report = memory_report(Expression(lambda self, x: x.exp()), torch.ones(SIZE, requires_grad=True))
    assert 0 <= report.held_bytes - MIB < KIB
    assert 0 <= report.peak_bytes - 2 * MIB < KIB
    assert report.allocator_peak_bytes is None


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("mebibytes", [5, 20])
def test_an_allocation_raises_the_peak_by_its_size(where, mebibytes):
    function = scratch(where, mebibytes)
    report = memory_report(Expression(lambda self, x: function.apply(x.exp())), torch.ones(SIZE, requires_grad=True))
    # In forward beside exp's MiB; in backward beside it alone: the gradient of the sum has no memory of its own.
    assert 0 <= report.peak_bytes - (mebibytes + 1) * MIB < KIB
    assert 0 <= report.held_bytes - MIB < KIB


def test_what_hooks_do_not_see_is_held():
    class Hiding(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.hidden = x * 2
            return x.view_as(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * ctx.hidden

    report = memory_report(Expression(lambda self, x: Hiding.apply(x)), torch.ones(SIZE, requires_grad=True))
    assert report.saved_bytes == 0 and 0 <= report.held_bytes - MIB < KIB


def test_memory_of_before_the_step_does_not_count_when_it_is_freed():
    before = [torch.zeros(64 * SIZE)]

    def forward():
        before.clear()
        return torch.zeros(SIZE)

    measured = measure_step(forward, lambda loss: None, CPU)
    assert measured == (MIB, MIB, None)


def test_an_address_of_an_earlier_step_is_not_taken_for_this_ones():
    """The profiler remembers sizes of addresses that were freed while it did not look."""
    size = 64 * MIB  # large enough to be mapped by itself: the address that was freed last is given out next
    kept: list[torch.Tensor] = []

    def free_and_allocate():
        kept.clear()
        return torch.empty(size, dtype=torch.uint8)

    for _ in range(20):
        measure_step(lambda: kept.append(torch.empty(size, dtype=torch.uint8)), lambda loss: None, CPU)
        address = kept.pop().data_ptr()
        kept.append(torch.empty(size, dtype=torch.uint8))
        if kept[0].data_ptr() == address:
            break
        kept.clear()
    assert kept and kept[0].data_ptr() == address, "the allocator gave out no address twice"
    assert measure_step(free_and_allocate, lambda loss: None, CPU).peak_bytes == size


def test_memory_is_not_held_longer_than_without_a_report():
    """Backward of ten layers in a row frees as it goes: the peak is the kept bytes and two gradients, not twice all."""
    model = nn.Sequential(*(nn.Sigmoid() for _ in range(10)))
    report = memory_report(model, torch.ones(SIZE, requires_grad=True))
    assert report.saved_bytes == 10 * MIB
    assert report.peak_bytes < 12 * MIB


def test_a_device_that_cannot_be_measured():
    ran = []
    measured = measure_step(lambda: None, ran.append, {torch.device("meta")})
    assert measured == (None, None, None) and ran == [None]


def test_a_running_profiler_is_refused():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        with pytest.raises(RuntimeError, match=r"must not run inside a profiler .*one that is running.*outside of"):
            memory_report(nn.Linear(2, 2), torch.ones(1, 2))


@pytest.mark.cuda
def test_an_allocation_raises_the_peak_on_cuda():
    plain, raised = (
        memory_report(
            Expression(lambda self, x, mib=mib: scratch("forward", 0).apply(x.exp()) + x.new_zeros(mib * SIZE).sum()),
            torch.ones(SIZE, requires_grad=True, device="cuda"),
        ).peak_bytes
        for mib in (4, 40)
    )
    # The sum of the larger tensor takes some KiB of its own, too.
    assert 0 <= raised - plain - 36 * MIB < MIB // 16
