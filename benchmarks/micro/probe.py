#!/usr/bin/env python3
"""What a GradientProbe costs: the time of a watched training step over that of another one, in both of its modes.

    python benchmarks/micro/probe.py --dataset npz:dblp.npz --layers 8      # GCN2, all products watched
    python benchmarks/micro/probe.py --dataset digits --layers 2            # embedded data, seconds

Every second step is watched, so that both kinds are timed under the same conditions; the table has the ratio of the
medians, and what that makes of a whole run when one step of twenty is watched.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.files import write_text

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.config import resolve
from benchmarks.harness.datasets import load
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.measure import stopwatch
from benchmarks.harness.script import parser_of
from benchmarks.harness.task import Task
from benchmarks.harness.train import build_model
from rmm_gnn import GradientProbe

EVERY = 20


def measure(dataset: NodeDataset, mode: str, layers: int, hidden: int, repetitions: int) -> dict[str, Any]:
    """Seconds of `repetitions` watched steps and of as many others between them, after a pair that does not count."""
    given = {"method": ("baseline",), "layers": layers, "hidden": hidden, "epochs": 1}
    run = resolve({"dataset": dataset.name, **given}).expand("", str(dataset.x.device))[0]
    task = Task.of(dataset, dataset.split_for(0).to(dataset.x.device))
    model = build_model(run, dataset.x.shape[1], dataset.num_classes, task).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr)
    watched: list[float] = []
    others: list[float] = []
    with GradientProbe(model, every=2, mode=mode) as probe:
        for step in tqdm(range(2 * repetitions + 2), desc=f"mode {mode}", unit="step", file=sys.stderr):
            with stopwatch(dataset.x.device, others if step % 2 else watched):
                optimizer.zero_grad(set_to_none=True)
                task.loss_fn(model(*task.inputs)).backward()
                optimizer.step()
        products = len({record.layer for record in probe.records})
    ratio = statistics.median(watched[1:]) / statistics.median(others[1:])
    return {
        "mode": mode, "products": products, "watched_s": watched[1:], "other_s": others[1:], "ratio": ratio,
        "overhead": (ratio - 1) / EVERY,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it as JSON where ``--out`` names a file.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--dataset", default="ogbn-arxiv", help="as in benchmarks/ogbn_arxiv.py")
    parser.add_argument("--root", default="data", help="folder with the data sets")
    parser.add_argument("--layers", type=int, default=8, help="GCN2 convolutions")
    parser.add_argument("--hidden", type=int, default=64, help="hidden channels")
    parser.add_argument("--repetitions", type=int, default=9, help="watched steps that count")
    parser.add_argument("--threads", type=int, help="CPU threads; unset: PyTorch's default")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    given = parser.parse_args(argv)
    try:
        if min(given.layers, given.hidden, given.repetitions) < 1:
            raise ValueError("'layers', 'hidden' and 'repetitions' must be at least 1. Choose other values.")
        tabulate = require("tabulate").tabulate
        dataset = load(given.dataset, given.root).to(environment.resolve_device(given.device))
    except (BenchmarkError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    records = [measure(dataset, mode, given.layers, given.hidden, given.repetitions) for mode in ("exact", "sketch")]
    where = environment.describe(dataset.x.device)
    rows = [
        [
            record["mode"],
            f"{1e3 * statistics.median(record['other_s']):.0f}",
            f"{1e3 * statistics.median(record['watched_s']):.0f}",
            f"{record['ratio']:.2f}",
            f"{100 * record['overhead']:.1f}",
        ]
        for record in records
    ]
    headers = ["mode", "step [ms]", "watched step [ms]", "ratio", f"one step of {EVERY} watched [%]"]
    print(
        f"{dataset.title}: GCN2, {given.layers} layers of {given.hidden}, {records[0]['products']} products watched; "
        f"{where['device']}, {where['threads']} threads, torch {where['packages']['torch']}; "
        f"medians of {given.repetitions} steps\n\n"
        f"{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}"
    )
    if given.out:
        write_text(given.out, json.dumps({"environment": where, "modes": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
