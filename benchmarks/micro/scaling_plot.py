"""How time and saved bytes grow, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.files import write_figure
from benchmarks.micro.scaling_curves import QUANTITIES, Curve

# What stands at the axes.
_AXES = {"rows": "rows B", "width": "width N (in = out)"}


def check(path: Path) -> None:
    """Refuse a picture's name before anything is measured.

    Raises:
        BenchmarkError: When matplotlib is not installed or does not write such files.
    """
    known = require("matplotlib.figure").Figure().canvas.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise BenchmarkError(f"'plot' must end in .png, .pdf or .svg (got '{path.name}'). Rename it.")


def draw(curves: Sequence[Curve], path: Path, title: str) -> None:
    """Draw a column of panels for rows and one for the width; markers are medians, bars 20 to 80 %, lines the fits."""
    # No pyplot: nothing here depends on a display.
    figure = require("matplotlib.figure").Figure(figsize=(11, 10), layout="constrained")
    panels = figure.subplots(len(QUANTITIES), len(_AXES), sharex="col", squeeze=False)
    layers = list(dict.fromkeys(curve.layer for curve in curves))
    for line, quantity in zip(panels, QUANTITIES, strict=True):
        for panel, (axis, axis_label) in zip(line, _AXES.items(), strict=True):
            for curve in curves:
                if (curve.axis, curve.quantity) == (axis, quantity):
                    _draw_curve(panel, curve, f"C{layers.index(curve.layer)}")
            panel.set_xscale("log", base=10 if axis == "rows" else 2)
            if axis == "width":
                panel.xaxis.set_major_formatter("{x:g}")
            panel.set_yscale("log")
            panel.set_ylabel(quantity.replace("_", " "))
            panel.grid(alpha=0.3)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(
                    title="exponent (95 % interval)",
                    loc="lower center",
                    bbox_to_anchor=(0.5, 1.0),  # above the panel, where it hides no point
                    fontsize="small",
                    title_fontsize="small",
                )
            if quantity == QUANTITIES[-1]:
                panel.set_xlabel(axis_label)
    figure.suptitle(title, fontsize="medium")
    write_figure(figure, path)


def _draw_curve(panel: Any, curve: Curve, colour: str) -> None:
    medians = [value.median for value in curve.values]
    below = [value.median - value.low for value in curve.values]
    above = [value.high - value.median for value in curve.values]
    label = curve.layer if curve.law is None else f"{curve.layer}: {curve.law.format()}"
    style = {"color": colour, "marker": "o", "markersize": 4, "linestyle": "none", "capsize": 2}
    panel.errorbar(curve.sizes, medians, yerr=[below, above], label=label, **style)
    if curve.law is not None:
        ends = [curve.law.start, curve.law.stop]
        panel.plot(ends, [curve.law.at(size) for size in ends], color=colour, linewidth=1)
