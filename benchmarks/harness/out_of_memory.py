"""What to say, and to do next, where a run does not fit into the memory of its device."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from benchmarks.harness import accounting
from benchmarks.harness.accounting import Block
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.methods import METHODS
from benchmarks.harness.run_config import RunConfig
from rmm_gnn.diagnostics.table import format_bytes

TOP = 8
# Activations [N, C] in fp32 that live at once while a layer runs, besides what is kept: its input, output, and their
# gradients.
_ALIVE = 4
# Parameter, gradient, and Adam's two moments, in fp32.
_PARAMETER_BYTES = 16
_RATES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.075, 0.05, 0.025, 0.01)
# A step on CPU to measure what is kept is not worth more memory than this.
_MEASURED_BYTES = 4 * 2**30


def free_bytes(device: torch.device) -> int | None:
    """What a run may take on a device, after what is held for nothing has been given back; None on CPU."""
    gc.collect()
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return free


def explain(run: RunConfig, dataset: NodeDataset) -> str:
    """What the run keeps, row by row, and which rates would fit.

    Args:
        run: That ran out of memory; what it held has been given up.
        dataset: On any device.

    Returns:
        Lines of text.
    """
    room = free_bytes(torch.device(run.device))
    needed = _kept_by_construction(run, dataset)
    words = ["Kept for backward, " + _ledger(run, dataset, needed)]
    if needed is not None:
        words.append(f"In all blocks by construction: {format_bytes(int(needed))}.")
    if room is None:
        return "\n".join(words)
    besides = _besides(run, dataset)
    words.append(
        f"Free on {run.device} without the run: {format_bytes(room)}. Parameters, optimizer and running layers "
        f"take about {format_bytes(besides)} of it."
    )
    fits = [
        f"{method.method} --rate {rate:g} ({format_bytes(int(kept))})"
        for method in _sketching(run)
        if (found := _largest_rate(lambda at: _kept_by_construction(at, dataset), method, room - besides)) is not None
        for rate, kept in [found]
    ]
    words.append(f"What would fit by construction: {', '.join(fits) or 'no rate; take fewer or narrower layers'}.")
    return "\n".join(words)


def _largest_rate(kept: Callable[[RunConfig], float | None], run: RunConfig, room: int) -> tuple[float, float] | None:
    """The largest of some rates whose bytes fit, and these."""
    for rate in _RATES:
        num_bytes = kept(replace(run, rate=rate))
        if num_bytes is not None and num_bytes <= room:
            return rate, num_bytes
    return None


def _sketching(run: RunConfig) -> Sequence[RunConfig]:
    """The run's own method where it has a rate of rows, or the methods that have one."""
    if run.method in ("rmm", "rmm-lean"):
        return [run]
    plain = replace(run, sketch="count_sketch", center=True, anchor=False, adaptive="off")
    lean = {"codec": "int8", "norm_codec": "int2", "norm_rate": 1.0, "x0_codec": "int4", "held": True}
    return [replace(plain, method="rmm", codec="fp32"), replace(plain, method="rmm-lean", **lean)]


def _kept_by_construction(run: RunConfig, dataset: NodeDataset) -> float | None:
    mask_bytes = 1 if torch.device(run.device).type == "cuda" else 4
    block = Block(run.hidden, run.layers, run.shared_weights, dropout=run.dropout > 0, mask_bytes=mask_bytes)
    a_node = METHODS[run.method].theory(block, run)
    return None if a_node is None else a_node * dataset.num_nodes * run.layers


def _besides(run: RunConfig, dataset: NodeDataset) -> int:
    weights = run.layers * run.hidden**2 * (1 if run.shared_weights else 2)
    ends = run.hidden * (dataset.x.shape[1] + dataset.num_classes)
    return _PARAMETER_BYTES * (weights + ends) + _ALIVE * accounting.FP32_BYTES * run.hidden * dataset.num_nodes


def _ledger(run: RunConfig, dataset: NodeDataset, needed: float | None) -> str:
    """The largest entries: measured on the CPU where that is affordable, else by construction."""
    stock = accounting.stock(Block(run.hidden, run.layers, run.shared_weights, mask_bytes=4))
    if stock * dataset.num_nodes * run.layers <= min(_MEASURED_BYTES, _host_bytes() // 2):
        from benchmarks.harness.ledger import measure_ledger

        report = measure_ledger(replace(run, device="cpu"), dataset.to("cpu"))
        return f"measured in a step of a copy on the CPU:\n{report.table(limit=TOP)}"
    nodes, unit = dataset.num_nodes, accounting.FP32_BYTES * run.hidden
    rows = f"an activation [N, {run.hidden}] in fp32 takes {format_bytes(nodes * unit)}"
    each = "" if needed is None else f", a block {format_bytes(int(needed / run.layers))}"
    return f"by construction (too large to be measured on the CPU): {rows}{each}, of {run.layers} blocks."


def _host_bytes() -> int:
    """Memory of this machine that is free; 0 where it is not known."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0


def report_out_of_memory(name: str, error: str, explanation: Callable[[], str]) -> None:
    """Say on standard error what failed and why; whatever goes wrong with the explanation must not end the sweep."""
    print(f"\nerror: {name}: out of memory ({error.splitlines()[0] if error else 'no more is known'})", file=sys.stderr)
    try:
        print(explanation(), file=sys.stderr)
    except (RuntimeError, MemoryError, ValueError) as failed:
        print(f"What it keeps could not be measured ({type(failed).__name__}: {failed}).", file=sys.stderr)
    print("The run has no record; the others go on.", file=sys.stderr)
