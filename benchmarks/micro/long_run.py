#!/usr/bin/env python3
"""Whether memory grows or noise drifts over thousands of training steps with every way to keep less at once.

    python benchmarks/micro/long_run.py                                        # 2,000 steps, minutes on one core
    python benchmarks/micro/long_run.py --out long_run.json --plot long_run.png

Trains a small GCN2 on random labels: sketches in INT8, x_0 shared in INT4, lean normalisation of half the rows,
activations and dropout, the features held, a probe at every step. It does so twice, once anchored and with a
controller of the rates ("anchored"), once with rows drawn by importance ("sampled"), which does not go with either.
At every step the square of each estimated gradient's error is divided by the closed form of its mean. Exits with 1 if
something grows, drifts or is left behind.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.script import guarded, parser_of
from benchmarks.micro import long_run_plot, scaling_plot
from benchmarks.micro.long_run_model import CONFIGS, Run, memory
from benchmarks.micro.long_run_verdicts import judge

_EVERY = 20  # steps between notes of memory, which take as long as some steps


def train(name: str, steps: int) -> dict[str, Any]:
    """Train in one configuration, and note memory and noise."""
    run = Run(name)
    every = min(_EVERY, steps // 10)
    # All notes have their place from the start: a list that grows would be taken for the growth that is looked for.
    ratios: dict[str, array[float]] = {}
    resident, tensors, tensor_bytes, left = (array("q", [1]) * (steps // every) for _ in range(4))
    for step in tqdm(range(steps), desc=name, unit="step", file=sys.stderr):
        for weight, ratio in run.step().items():
            ratios.setdefault(weight, array("d", [1.0]) * steps)[step] = ratio
        if (step + 1) % every == 0:
            point = step // every
            left[point] = run.storages_left()
            found = memory()
            resident[point] = -1 if found["resident_bytes"] is None else found["resident_bytes"]
            tensors[point], tensor_bytes[point] = found["tensors"], found["tensor_bytes"]
    return {
        "steps": list(range(every, steps + 1, every)),
        "memory": [
            {"resident_bytes": None if size < 0 else size, "tensors": count, "tensor_bytes": total}
            for size, count, total in zip(resident, tensors, tensor_bytes, strict=True)
        ],
        "storages_left": list(left),
        "ratios": {weight: list(values) for weight, values in ratios.items()},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the verdicts.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, 1 where a verdict is bad, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="training steps of each run")
    parser.add_argument("--windows", type=int, default=10, help="parts of a run whose mean noise is tested")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--out", type=Path, help="JSON file for what was noted, and the verdicts")
    parser.add_argument("--plot", type=Path, help="picture of memory and noise over the steps")
    given = parser.parse_args(argv)

    def work() -> int:
        require("scipy.stats")
        tabulate = require("tabulate").tabulate
        if given.windows < 1 or given.steps < 10 * given.windows:
            raise BenchmarkError(
                f"'steps' must be at least ten for each of the windows (got {given.steps} and {given.windows}). "
                "Train for longer."
            )
        if given.plot:
            scaling_plot.check(given.plot)
        torch.set_num_threads(given.threads)
        runs = {name: train(name, given.steps) for name in CONFIGS}
        verdicts = {name: judge(run, given.windows) for name, run in runs.items()}
        print(f"{given.steps} steps, {environment.cpu_name()}, {given.threads} thread(s)\n")
        print(tabulate([_row(name, runs[name], verdicts[name]) for name in runs], _HEADERS, tablefmt="github"))
        bad = [f"{name}: {question}" for name, found in verdicts.items() for question, passed in found["passed"].items()
               if passed is False]  # fmt: skip
        print(f"\nbad: {'; '.join(bad)}" if bad else "\nNothing grows, drifts or is left behind.")
        if given.out:
            settings = {"steps": given.steps, "windows": given.windows, "threads": given.threads}
            described = environment.describe(torch.device("cpu"))
            given.out.parent.mkdir(parents=True, exist_ok=True)
            written = {"settings": settings, "environment": described, "runs": runs, "verdicts": verdicts}
            given.out.write_text(json.dumps(written) + "\n")
        if given.plot:
            long_run_plot.draw(runs, given.windows, given.plot)
        return int(bool(bad))

    return guarded(work, "interrupted: nothing is written")


_HEADERS = [
    "run", "resident: first", "middle", "last [MiB]", "growth over the 2nd half [95 %] [KiB]", "tensors", "their KiB",
    "storages left", "noise / closed form, windows", "worst z: window", "slope",
]  # fmt: skip


def _row(name: str, run: dict[str, Any], verdict: dict[str, Any]) -> list[str]:
    points, grown = run["memory"], verdict["resident_growth_bytes"]
    resident = [points[place]["resident_bytes"] for place in (0, len(points) // 2, -1)]
    means = [mean for parts in verdict["windows"].values() for mean, _ in parts]
    half = points[len(points) // 2 :]
    return [
        name,
        *("?" if value is None else f"{value / 2**20:.1f}" for value in resident),
        "?"
        if grown is None
        else "{growth:.0f} [{low:.0f}, {high:.0f}]".format(**{k: v / 1024 for k, v in grown.items()}),
        _span([point["tensors"] for point in half], "d"),
        _span([point["tensor_bytes"] / 1024 for point in half], ".1f"),
        str(max(run["storages_left"])),
        _span(means, ".3f"),
        f"{verdict['worst_window_z']:.1f}",
        f"{verdict['worst_slope_z']:.1f}",
    ]


def _span(values: Sequence[Any], form: str) -> str:
    low, high = min(values), max(values)
    return f"{low:{form}}" if low == high else f"{low:{form}} to {high:{form}}"


if __name__ == "__main__":
    sys.exit(main())
