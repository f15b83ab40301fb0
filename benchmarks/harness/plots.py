"""Test accuracy against epoch, as in the paper's Figure 7."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.errors import require
from benchmarks.harness.files import write_figure
from benchmarks.harness.rows import group_rows, label

FILE = "accuracy.png"


def plot_accuracy(records: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Draw one line per row of the table, its mean over runs, in a band of one standard deviation (ddof = 1).

    Args:
        records: Finished runs of one sweep; at least one.
        folder: Exists.

    Returns:
        The picture's path.
    """
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    rows = group_rows(records)
    figure, axes = plt.subplots(figsize=(9, 5 + 0.1 * len(rows)), layout="constrained")
    for row, group in rows.items():
        epochs = group[0]["curves"]["epochs"]
        curves = 100 * np.array([record["curves"]["test"] for record in group], dtype=float)  # [runs, evaluations]
        mean = curves.mean(axis=0)
        marker = "o" if len(epochs) == 1 else None
        (line,) = axes.plot(
            epochs,
            mean,
            marker=marker,
            linewidth=1.5,
            label=f"{label(row)}, {len(group)} run{'s' if len(group) > 1 else ''}",
        )
        if len(group) > 1:
            spread = curves.std(axis=0, ddof=1)
            axes.fill_between(epochs, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)
    config = records[0]["config"]
    axes.set_title(f"{records[0]['dataset']['title']}: GCN2, {config['layers']} layers of {config['hidden']}")
    axes.set_xlabel("epoch")
    axes.set_ylabel("test accuracy [%]")
    axes.grid(alpha=0.3)
    title = "mean, band: 1 standard deviation"
    figure.legend(title=title, loc="outside lower center", ncols=1 if len(rows) < 4 else 2, fontsize="small")
    write_figure(figure, folder / FILE)
    plt.close(figure)
    return folder / FILE


def plot_noise(records: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Draw, for the first run of every row whose rates follow the noise, noise and rates by step.

    Args:
        records: Finished runs.
        folder: Exists.

    Returns:
        The pictures' paths; none where no run moves its rates.
    """
    from rmm_gnn.planning import RateChange, draw_changes

    paths = []
    for row, group in group_rows(records).items():
        first = group[0]
        if first["curves"]["noise"]:
            changes = [RateChange(*change) for change in first["curves"]["noise"]]
            name = re.sub(r"[^\w.]+", "-", label(row)).strip("-")
            paths.append(folder / f"noise-{name}.png")
            draw_changes(changes, paths[-1], quantity="D2_RMM / D2_SGD", target=first["config"]["noise_target"])
    return paths
