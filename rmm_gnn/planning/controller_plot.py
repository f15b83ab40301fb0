"""A controller's history as a figure."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rmm_gnn._files import save_figure

if TYPE_CHECKING:
    from rmm_gnn.planning.controller import RateChange


def draw_changes(
    history: Iterable[RateChange],
    path: str | os.PathLike[str],
    *,
    quantity: str,
    target: float,
    band: float = 0.1,
) -> None:
    """Write two panels, the measured quantity with its target and band, and the rates, by step.

    Args:
        history: What ``NoiseController.history`` holds.
        path: Where to write; the ending decides the format.
        quantity: Name of what was held.
        target: Its target.
        band: What was tolerated on both sides, as a share of the target.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib (not installed). Run: pip install matplotlib, or pip install -e '.[benchmarks]'."
        ) from error
    by_layer: dict[str, list[RateChange]] = {}
    for change in history:
        by_layer.setdefault(change.layer, []).append(change)
    if not by_layer:
        raise ValueError("There is nothing to plot: no step was measured yet. Call step() after backward().")
    # No pyplot: its global state and choice of a display are the caller's.
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    measured, rates = figure.subplots(2, 1, sharex=True)
    measured.axhspan(target / (1 + band), target * (1 + band), color="lightgrey", label="band")
    measured.axhline(target, color="black", linewidth=0.8, label="target")
    for layer, changes in by_layer.items():
        steps = [change.step for change in changes]
        measured.plot(steps, [change.measured for change in changes], label=layer)
        rates.plot(steps, [change.rate for change in changes], drawstyle="steps-post", label=layer)
    measured.set_ylabel(quantity)
    rates.set_ylabel("rate")
    rates.set_xlabel("step")
    for panel in (measured, rates):
        panel.set_yscale("log")
    measured.legend(fontsize="small", ncols=2)
    save_figure(figure, path)
