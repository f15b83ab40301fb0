"""Test accuracy and time against saved bytes, one point per row of the table, with the frontier drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import require
from benchmarks.harness.files import write_figure
from benchmarks.harness.methods import METHODS
from benchmarks.harness.rows import Record, accuracy, group_rows, label, median

FILE = "frontier.png"
_MARKERS = "osDph8H"  # wide enough for a number


def pareto_front(points: Sequence[tuple[float, float]], *, larger_is_better: bool) -> list[tuple[float, float]]:
    """The points (bytes, value) that no other point beats in both, fewest bytes first.

    Args:
        points: At least one.
        larger_is_better: Whether a larger value is the better one; fewer bytes always are.

    Returns:
        Some of ``points``; each has a better value than all with fewer bytes.
    """
    sign = -1 if larger_is_better else 1
    front: list[tuple[float, float]] = []
    for bytes_, value in sorted(points, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * value < sign * front[-1][1]:
            front.append((bytes_, value))
    return front


def plot_frontier(records: Sequence[Record], folder: Path) -> Path:
    """Draw accuracy (mean, bar: standard deviation over runs) and median seconds per epoch against saved bytes.

    Args:
        records: Finished runs of one sweep; at least one.
        folder: Exists.

    Returns:
        The picture's path.
    """
    require("matplotlib").use("Agg")
    plt, ticker = require("matplotlib.pyplot"), require("matplotlib.ticker")
    rows = group_rows(records)
    largest = max(median(group, "saved_total_bytes") or 0 for group in rows.values())
    unit, scale = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.6 + 0.14 * len(rows)), layout="constrained")
    points: tuple[list[tuple[float, float]], ...] = ([], [])
    handles = []
    for number, (row, group) in enumerate(rows.items(), start=1):
        # What is kept elsewhere leaves nothing to draw on a logarithmic axis: it stands at its left end.
        kept = max(median(group, "saved_total_bytes") or 0, largest / 1000) / scale
        mean, deviation = accuracy(group)
        seconds = median(group, "epoch_s") or 0.0
        place = list(METHODS).index(row[0]) if row[0] in METHODS else len(METHODS)
        style: dict[str, Any] = {
            "color": f"C{place}",
            "marker": _MARKERS[place % len(_MARKERS)],
            "linestyle": "none",
            "markersize": 12,
            "markeredgecolor": "white",
            "zorder": 2 + number,  # a point that is covered is so with its number
        }
        bars = panels[0].errorbar(kept, mean, yerr=deviation, capsize=3, label=f"{number}  {label(row)}", **style)
        handles.append(bars)
        panels[1].plot(kept, seconds, **style)
        for panel, values, value in zip(panels, points, (mean, seconds), strict=True):
            values.append((kept, value))
            # errorbar lifts its markers by 0.1.
            text = {"color": "white", "fontsize": 6, "ha": "center", "va": "center", "zorder": style["zorder"] + 0.2}
            panel.annotate(str(number), (kept, value), **text)
    for panel, values, larger in zip(panels, points, (True, False), strict=True):
        front = pareto_front(values, larger_is_better=larger)
        front.append((max(kept for kept, _ in values), front[-1][1]))
        panel.step(*zip(*front, strict=True), where="post", color="0.5", linewidth=1, zorder=0)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(ticker.NullLocator())
        panel.set_xlabel(f"saved in all [{unit}]")
        panel.grid(alpha=0.3)
        panel.margins(0.08)
    panels[0].set_ylabel("test accuracy [%]")
    panels[1].set_ylabel("seconds per epoch")
    panels[1].set_ylim(bottom=0)
    config = records[0]["config"]
    title = f"{records[0]['dataset']['title']}: GCN2, {config['layers']} layers of {config['hidden']}"
    figure.suptitle(f"{title} (line: nothing is better with fewer bytes)")
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize="small", markerscale=0.7)
    write_figure(figure, folder / FILE)
    plt.close(figure)
    return folder / FILE
