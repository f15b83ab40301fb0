"""A probe's records as a figure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rmm_gnn._files import save_figure

if TYPE_CHECKING:
    from rmm_gnn.diagnostics.noise_record import NoiseRecord

_MAX_LAYERS = 4


def draw(records: Iterable[NoiseRecord], path: str | os.PathLike[str], layers: Iterable[str] | None) -> None:
    """Write one column of three panels for each layer; see ``GradientProbe.plot``."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib (not installed). Run: pip install matplotlib, or pip install -e '.[benchmarks]'."
        ) from error
    by_layer: dict[str, list[NoiseRecord]] = {}
    for record in records:
        by_layer.setdefault(record.layer, []).append(record)
    chosen = list(by_layer)[:_MAX_LAYERS] if layers is None else list(layers)
    unknown = [name for name in chosen if name not in by_layer]
    if unknown or not chosen:
        raise ValueError(
            f"'layers' must be weights that were recorded (got {unknown or 'no records'}). "
            f"Recorded are: {', '.join(by_layer) or 'none'}."
        )
    # No pyplot: its global state and choice of a display are the caller's.
    figure = Figure(figsize=(4.2 * len(chosen), 8), layout="constrained")
    panels = figure.subplots(3, len(chosen), sharex=True, squeeze=False)
    for column, name in enumerate(chosen):
        _column(list(panels[:, column]), name, by_layer[name])
    save_figure(figure, path)


def _column(panels: Sequence[Any], name: str, records: Sequence[NoiseRecord]) -> None:
    steps = [record.step for record in records]
    variances, ratio, alignment = panels
    variances.set_title(name)
    variances.plot(steps, [record.sgd_variance for record in records], label="$D^2_{SGD}$ (9)")
    variances.plot(steps, [record.rmm_variance for record in records], label="$D^2_{RMM}$")
    variances.plot(
        steps, [record.paper_rmm_variance for record in records], ":", color="grey", label="paper's $D^2_{RMM}$ (11)"
    )
    variances.set_ylabel("variance")
    ratio.plot(steps, [record.variance_ratio for record in records], label="$D^2_{RMM} / D^2_{SGD}$")
    ratio.plot(steps, [record.ratio_bound for record in records], ":", color="grey", label="paper's bound (12)")
    ratio.set_ylabel("ratio")
    alignment.plot(steps, [record.alignment for record in records], label=r"$\alpha$ (13)")
    alignment.set_ylabel("alignment")
    alignment.set_xlabel("step")
    for panel in panels:
        if all(value > 0 for line in panel.get_lines() for value in line.get_ydata()):
            panel.set_yscale("log")
        panel.legend(fontsize="small")
