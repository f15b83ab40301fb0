"""Memory and time of training steps, one record a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.harness.measure import PeakMemory, stopwatch
from benchmarks.reports.rows import Row
from benchmarks.reports.workload import TINY, Workload, applied

CPU_PEAK = (
    "parameters, optimizer state and, above them, the highest point of a training step by the profiler's record of "
    "allocations"
)


def measure_memory(workload: Workload, row: Row, center: bool, device: torch.device) -> dict[str, Any]:
    """Peak of training with AdamW, and what a step keeps for backward by the ledger.

    Returns:
        ``peak_bytes``, ``peak_definition``, ``saved_bytes``, and ``static_bytes``, which parameters and optimizer take;
        or ``out_of_memory`` where CUDA's memory does not suffice.
    """
    from rmm_gnn import memory_report

    torch.manual_seed(0)
    cuda = device.type == "cuda"
    peak = PeakMemory(device)
    if cuda:
        peak.start()
    try:
        model = workload.build(device)
        inputs = workload.inputs(model, device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        with applied(model, row, center) as loss:
            for _ in range(2 if cuda else 1):  # from the second on, the optimizer has its state from the beginning
                optimizer.zero_grad(set_to_none=True)
                loss(**inputs).backward()
                optimizer.step()
            peak_bytes = peak.read_bytes() if cuda else None
            optimizer.zero_grad(set_to_none=True)
            report = memory_report(loss, loss_fn=lambda value: value, optimizer=optimizer, **inputs)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    assert report.optimizer_bytes is not None
    static_bytes = report.parameter_bytes + report.buffer_bytes + report.optimizer_bytes
    if peak_bytes is None:  # exact, where the process's resident set would be a rough measure
        assert report.peak_bytes is not None
        peak_bytes = static_bytes + report.peak_bytes
    return {
        "out_of_memory": False,
        "peak_bytes": peak_bytes,
        "peak_definition": peak.definition if cuda else CPU_PEAK,
        "saved_bytes": report.saved_bytes,
        "static_bytes": static_bytes,
    }


def warm_up(rows: Sequence[Row], center: bool, device: torch.device) -> None:
    """Measure a tiny model first: what CUDA's libraries allocate once must not count for the first that is measured."""
    if device.type == "cuda":
        for row in rows:
            measure_memory(Workload(TINY, "eager", 2, 16), row, center, device)


def measure_times(
    workload: Workload, rows: Sequence[Row], center: bool, device: torch.device, rounds: int
) -> dict[Row, list[float]]:
    """Seconds of training steps with AdamW, the rows in turn in every round, after one round that does not count."""
    torch.manual_seed(0)
    model = workload.build(device)
    inputs = workload.inputs(model, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    seconds: dict[Row, list[float]] = {row: [] for row in rows}
    for _ in range(rounds + 1):
        for row in rows:
            with applied(model, row, center) as loss, stopwatch(device, seconds[row]):
                optimizer.zero_grad(set_to_none=True)
                loss(**inputs).backward()
                optimizer.step()
    return {row: values[1:] for row, values in seconds.items()}
