"""Pictures of reports, drawn without a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import require
from benchmarks.harness.files import write_figure


@contextmanager
def panels(path: Path, count: int, columns: int = 2, legend: str | None = None) -> Iterator[list[Any]]:
    """Axes to draw on, saved to ``path`` at the end; with ``legend``, one legend for all, titled so."""
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(max(6.5, 4.5 * columns), 3.6 * rows + 0.6), layout="constrained", squeeze=False
    )
    try:
        axes = list(grid.flat)
        for unused in axes[count:]:
            unused.set_axis_off()
        yield axes[:count]
        for one in axes[:count]:
            one.grid(alpha=0.3)
        if legend is not None:
            _legend(figure, axes[:count], legend)
        write_figure(figure, path)
    finally:
        plt.close(figure)


def _legend(figure: Any, axes: Sequence[Any], title: str) -> None:
    """What is drawn in several panels is named once."""
    found = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    if found:
        figure.legend(
            found.values(), found.keys(), title=title or None, loc="outside lower center", ncols=4, fontsize="small"
        )
