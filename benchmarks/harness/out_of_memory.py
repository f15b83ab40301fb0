"""What to say, and to do next, where a run does not fit into the memory of its device."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.harness import accounting
from benchmarks.harness.accounting import Block
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.loader_choice import FULL
from benchmarks.harness.loaders import BatchLoader
from benchmarks.harness.measure import storages
from benchmarks.harness.methods import METHODS
from benchmarks.harness.run_config import RunConfig
from rmm_gnn.diagnostics.table import format_bytes

TOP = 8
SMALLER_BATCHES = "Take fewer nodes a batch (--batch-size, --fan-out, --parts-per-batch), or a method that keeps less."
# Activations [N, C] in fp32 that live at once while a layer runs, besides what is kept: its input, output, and their
# gradients.
_ALIVE = 4
# Parameter, gradient, and Adam's two moments, in fp32.
_PARAMETER_BYTES = 16
_RATES = (1.0, 0.75, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.075, 0.05, 0.025, 0.01)
# Rates that are tried for batches, each by a step on the CPU.
_BATCH_RATES = (0.5, 0.2, 0.1, 0.05, 0.01)
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
        dataset: On any device; on CPU for sampled batches, of which one is measured.

    Returns:
        Lines of text.
    """
    if run.loader != FULL:
        return explain_batch(run, dataset)
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


def explain_batch(run: RunConfig, dataset: NodeDataset) -> str:
    """What a batch of the run keeps, row by row, and which rates would fit, measured in steps of a copy on the CPU.

    Args:
        run: On sampled batches, that ran out of memory; what it held has been given up.
        dataset: On CPU.

    Returns:
        Lines of text.
    """
    from benchmarks.harness.ledger import measure_ledger

    room = free_bytes(torch.device(run.device))
    on_cpu = replace(run, device="cpu")
    batch = next(BatchLoader(on_cpu, dataset, dataset.split_for(run.seed).train).epoch(1))
    rows, inputs = batch.rows(run.layers), _bytes_of(batch.tensors())
    del batch
    block = Block(run.hidden, run.layers, run.shared_weights, mask_bytes=4)
    counted = (
        f"A batch has {rows[0]:,} rows in the first Linear, {', '.join(f'{n:,}' for n in rows[1:-1])} in the blocks."
    )
    if accounting.stock(block) * sum(rows[:-1]) > min(_MEASURED_BYTES, _host_bytes() // 2):
        return f"{counted} It is too large to be measured on the CPU. {SMALLER_BATCHES}"
    report = measure_ledger(on_cpu, dataset)
    words = [
        counted,
        f"Kept for backward, measured in a step of a copy on the CPU:\n{report.table(limit=TOP)}",
        f"In all: {format_bytes(report.saved_bytes)}.",
    ]
    if room is not None:
        besides = inputs + _parameters(run, dataset) + _ALIVE * accounting.FP32_BYTES * run.hidden * max(rows)
        words.append(
            f"Free on {run.device} without the run: {format_bytes(room)}. The batch, parameters, optimizer and running "
            f"layers take about {format_bytes(besides)} of it."
        )

        def kept(at: RunConfig) -> float:
            return measure_ledger(at, dataset).saved_bytes

        fits = [
            f"{method.method} --rate {found[0]:g} ({format_bytes(int(found[1]))})"
            for method in _sketching(on_cpu)
            if (found := _largest_rate(kept, method, room - besides, _BATCH_RATES)) is not None
        ]
        words.append(f"What would fit, as measured there: {', '.join(fits) or 'no rate'}.")
    return "\n".join([*words, SMALLER_BATCHES])


def _largest_rate(
    kept: Callable[[RunConfig], float | None], run: RunConfig, room: int, rates: Sequence[float] = _RATES
) -> tuple[float, float] | None:
    """The largest of some rates whose bytes fit, and these."""
    for rate in rates:
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
    return _parameters(run, dataset) + _ALIVE * accounting.FP32_BYTES * run.hidden * dataset.num_nodes


def _parameters(run: RunConfig, dataset: NodeDataset) -> int:
    weights = run.layers * run.hidden**2 * (1 if run.shared_weights else 2)
    ends = run.hidden * (dataset.x.shape[1] + dataset.num_classes)
    return _PARAMETER_BYTES * (weights + ends)


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


def _bytes_of(tensors: Sequence[Tensor]) -> int:
    return sum(storage.nbytes() for tensor in tensors for storage in storages(tensor))


def out_of_memory_text(name: str, error: str, explanation: Callable[[], str]) -> str:
    """What failed and why; whatever goes wrong with the explanation must not end the sweep."""
    said = f"{name}: out of memory ({error.splitlines()[0] if error else 'no more is known'})"
    try:
        return f"{said}\n{explanation()}"
    except (RuntimeError, MemoryError, ValueError) as failed:
        return f"{said}\nWhat it keeps could not be measured ({type(failed).__name__}: {failed})."


def report_out_of_memory(name: str, error: str, explanation: Callable[[], str]) -> None:
    """Say on standard error what failed and why, of a run after which others go on."""
    print(f"\nerror: {out_of_memory_text(name, error, explanation)}", file=sys.stderr)
    print("The run has no record; the others go on.", file=sys.stderr)
