"""What to say where a fine-tuning run does not fit into the memory of its device."""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.harness.out_of_memory import TOP, free_bytes
from benchmarks.text.run_config import TextRun
from benchmarks.text.training import Prepared, measure_ledger
from rmm_gnn.diagnostics.table import format_bytes

# Rates that are tried, each by a step on the CPU.
_RATES = (0.5, 0.2, 0.1, 0.05, 0.01)
# Parameter, gradient, and AdamW's two moments, in fp32.
_PARAMETER_BYTES = 16


def explain(run: TextRun, data: Prepared) -> str:
    """What a step of the run keeps, row by row, and at which rate it would fit.

    Args:
        run: That ran out of memory; what it held has been given up.
        data: Of its task.

    Returns:
        Lines of text.
    """
    room = free_bytes(torch.device(run.device))
    on_cpu = replace(run, device="cpu", precision="fp32" if run.precision == "fp16" else run.precision)
    report, num_parameters = measure_ledger(on_cpu, data)
    words = [
        f"Kept for backward, measured in a step of a copy on the CPU:\n{report.table(limit=TOP)}",
        f"In all: {format_bytes(report.saved_bytes)}.",
    ]
    if room is None:
        return "\n".join(words)
    besides = _PARAMETER_BYTES * num_parameters
    words.append(
        f"Free on {run.device} without the run: {format_bytes(room)}. Parameters, gradients and optimizer take "
        f"{format_bytes(besides)} of it."
    )
    lean = replace(on_cpu, method="rmm-lean", sketch=run.sketch or "count_sketch", codec=run.codec or "fp32")
    lean = replace(lean, center=run.center is not False, norm_codec="int2", act_codec="int4", row_mask=False)
    for rate in _RATES:
        found, _ = measure_ledger(replace(lean, rate=rate), data)
        if found.saved_bytes <= room - besides:
            kept = format_bytes(found.saved_bytes)
            words.append(f"What would fit, as measured there: rmm-lean --rate {rate:g} ({kept}).")
            break
    else:
        words.append("No rate would fit: take a smaller --batch-size or --max-length.")
    return "\n".join(words)
