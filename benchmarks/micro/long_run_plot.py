"""Memory and noise of a long run, as a figure."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import require
from benchmarks.micro.long_run_verdicts import windows


def draw(runs: dict[str, dict[str, Any]], number: int, path: Path) -> None:
    """Draw a column for each run: resident memory above; mean noise over prediction in windows, 95 %, below."""
    # No pyplot: nothing here depends on a display.
    figure = require("matplotlib.figure").Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, len(runs), squeeze=False, sharex="col", sharey="row")
    for (name, run), (above, below) in zip(runs.items(), panels.T, strict=True):
        resident = [point["resident_bytes"] for point in run["memory"]]
        if None not in resident:
            above.plot(run["steps"], [value / 2**20 for value in resident])
            above.set_ylim(0, 1.2 * max(resident) / 2**20)
        above.set_ylabel("resident memory [MiB]")
        above.set_title(name)
        for place, (weight, ratios) in enumerate(sorted(run["ratios"].items())):
            parts = windows(ratios, number)
            width = len(ratios) / number
            # Side by side, so that no bar hides another.
            middles = [(part + 0.5) * width + (place - 2) * 0.1 * width for part in range(number)]
            bars = [1.96 * statistics.stdev(part) / len(part) ** 0.5 for part in parts]
            means = [statistics.fmean(part) for part in parts]
            below.errorbar(middles, means, bars, marker=".", linestyle="none", capsize=2, label=weight)
        below.axhline(1.0, color="black", linewidth=0.8)
        below.set_ylabel("measured noise / closed form")
        below.set_xlabel("step")
        # Below the panel, where it hides no point.
        below.legend(fontsize="small", ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        for panel in (above, below):
            panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
