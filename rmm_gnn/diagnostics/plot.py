"""The report as a figure."""

from __future__ import annotations

import os

from rmm_gnn._files import save_figure
from rmm_gnn.diagnostics.report import MemoryReport

_MAX_OPERATORS = 9
_OTHERS = "others"
_MIB = 2**20


def draw(report: MemoryReport, path: str | os.PathLike[str], limit: int) -> None:
    """Write one bar for each module, made up of its operators.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib (not installed). Run: pip install matplotlib, or pip install -e '.[benchmarks]'."
        ) from error

    bars, parts = _bars(report, limit)
    # No pyplot: its global state and choice of a display are the caller's.
    figure = Figure(figsize=(9, 1.6 + 0.28 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    left = dict.fromkeys(bars, 0.0)
    for index, (operator, sizes) in enumerate(parts.items()):
        widths = [sizes.get(bar, 0) / _MIB for bar in bars]
        colour = "lightgrey" if operator == _OTHERS else colormaps["tab10"](index)
        axes.barh(bars, widths, left=list(left.values()), color=colour, label=operator)
        left = {bar: left[bar] + width for bar, width in zip(bars, widths, strict=True)}
    axes.invert_yaxis()
    axes.set_xlabel("saved for backward (MiB)")
    axes.set_title(f"{report.saved_bytes / _MIB:.1f} MiB, {'training' if report.training else 'eval'} mode")
    if parts:
        axes.legend(title="operator")
    save_figure(figure, path)


def _bars(report: MemoryReport, limit: int) -> tuple[list[str], dict[str, dict[str, int]]]:
    """The bars from the top, and for each operator, largest first, its bytes in each bar."""
    modules = list(report.by_module())
    bars = modules[:limit] + ([_OTHERS] if len(modules) > limit else [])
    operators = list(report.by_operator())
    names = operators[:_MAX_OPERATORS] + ([_OTHERS] if len(operators) > _MAX_OPERATORS else [])
    parts: dict[str, dict[str, int]] = {name: {} for name in names}
    for entry in report.entries:
        bar = entry.module if entry.module in bars else _OTHERS
        part = parts[entry.operator if entry.operator in parts else _OTHERS]
        part[bar] = part.get(bar, 0) + entry.saved_bytes
    return bars, parts
