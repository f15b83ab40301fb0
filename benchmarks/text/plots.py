"""Losses and score by step, as in the paper's Figures 4 and 6."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.errors import require
from benchmarks.harness.files import write_figure
from benchmarks.text.report import rows_of
from benchmarks.text.tasks import TASKS

FILE = "curves.png"
_PANELS = (("train_loss", "training loss"), ("eval_loss", "evaluation loss"), ("score", "score"))


def plot_curves(records: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Draw a line of panels for every task; a row of its table is a line, its mean over runs.

    Args:
        records: Finished runs of one sweep; at least one.
        folder: Exists.

    Returns:
        The picture's path.
    """
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    tasks = list(dict.fromkeys(record["config"]["task"] for record in records))
    figure, grid = plt.subplots(
        len(tasks), len(_PANELS), figsize=(12, 3 * len(tasks) + 0.6), layout="constrained", squeeze=False
    )
    lines: dict[str, Any] = {}
    for name, line in zip(tasks, grid, strict=True):
        rows = rows_of(record for record in records if record["config"]["task"] == name)
        for axes, (series, title) in zip(line, _PANELS, strict=True):
            for number, (row, group) in enumerate(rows.items()):
                curves = np.array([record["curves"][series] for record in group], dtype=float)  # [runs, evaluations]
                label = " ".join(filter(None, row))
                (lines[label],) = axes.plot(
                    group[0]["curves"]["step"], curves.mean(axis=0), marker=".", color=f"C{number}", label=label
                )
            axes.set_title(f"{TASKS[name].folder}: {title}", fontsize="medium")
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
    figure.legend(lines.values(), lines, title="mean over runs", loc="outside lower center", ncols=3, fontsize="small")
    write_figure(figure, folder / FILE, dpi=130)
    plt.close(figure)
    return folder / FILE
