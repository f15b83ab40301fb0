"""The memory that the allocator really gave out during one step."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import profiler

_BACKWARD = "rmm_gnn.diagnostics: backward"


class StepMemory(NamedTuple):
    """Bytes above what was allocated before the step; None where they cannot be measured.

    Attributes:
        held_bytes: Between forward and backward.
        peak_bytes: At the highest point of the step.
        allocator_peak_bytes: On CUDA, the allocator's own peak: everything on the device, not only this step.
    """

    held_bytes: int | None
    peak_bytes: int | None
    allocator_peak_bytes: int | None


def measure_step(
    forward: Callable[[], Tensor | None],
    backward: Callable[[Tensor | None], None],
    devices: Collection[torch.device],
) -> StepMemory:
    """Run ``backward(forward())`` and measure it: on CUDA by the allocator's counters, on CPU by the profiler's events.

    Over several CUDA devices the bytes are sums of each one's peak.
    """
    gc.collect()  # garbage of earlier runs would be freed in the middle of this one
    cuda = [device for device in devices if device.type == "cuda"]
    if cuda:
        return _measure_cuda(forward, backward, cuda)
    if all(device.type == "cpu" for device in devices):
        return _measure_cpu(forward, backward)
    backward(forward())
    return StepMemory(None, None, None)


def _measure_cuda(
    forward: Callable[[], Tensor | None], backward: Callable[[Tensor | None], None], devices: list[torch.device]
) -> StepMemory:
    def total(count: Callable[[torch.device], int]) -> int:
        return sum(count(device) for device in devices)

    for device in devices:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = total(torch.cuda.memory_allocated)
    loss = forward()
    held = total(torch.cuda.memory_allocated) - start
    backward(loss)
    peak = total(torch.cuda.max_memory_allocated)
    return StepMemory(held, peak - start, peak)


def _measure_cpu(forward: Callable[[], Tensor | None], backward: Callable[[Tensor | None], None]) -> StepMemory:
    with profiler.profile(use_cpu=True, profile_memory=True) as profile:
        loss = forward()
        with profiler.record_function(_BACKWARD):
            backward(loss)
    assert profile.kineto_results is not None  # set when the block is left
    events = sorted(_flatten(profile.kineto_results.experimental_event_tree()), key=lambda event: event.start_time_ns)

    # Only addresses given out during the step count: what is freed of earlier times never raised it.
    live: dict[int, int] = {}
    current = peak = held = 0
    for event in events:
        if event.name == _BACKWARD:
            held = current
        size = getattr(event.extra_fields, "alloc_size", None)
        if size is None:
            continue
        address = event.extra_fields.ptr
        if size > 0:
            live[address] = size
            current += size
        else:
            current -= live.pop(address, 0)
        peak = max(peak, current)
    return StepMemory(held, peak, None)


def _flatten(tree: Any) -> list[Any]:
    events, waiting = [], list(tree)
    while waiting:
        event = waiting.pop()
        events.append(event)
        waiting.extend(event.children)
    return events
