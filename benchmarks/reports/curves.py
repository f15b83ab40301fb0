"""Curves of several runs on common steps: their mean and spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.reports.rows import Record

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # steps, mean, standard deviation; [n] each


def mean_curve(records: Sequence[Record], part: str, name: str, at: str = "step") -> Curve:
    """Mean and standard deviation (ddof = 1; 0 for one run) of a curve over runs.

    Args:
        records: Runs of one row; at least one.
        part: Field of the records with the curve and the steps it was taken at.
        name: The curve.
        at: Its steps.

    Returns:
        Steps that all runs have, in order, with the values there; nan where no run has one.
    """
    series = [dict(zip(record[part][at], record[part][name], strict=True)) for record in records]
    steps = sorted(set.intersection(*(set(one) for one in series)))
    values = np.array([[_number(one[step]) for step in steps] for one in series], dtype=float)  # [runs, steps]
    spread = values.std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(steps))
    return np.array(steps), values.mean(axis=0), spread


def draw(axes: Any, curve: Curve, label: str, **style: Any) -> None:
    """A line in a band of one standard deviation."""
    steps, mean, spread = curve
    (line,) = axes.plot(steps, mean, label=label, marker="o" if len(steps) < 3 else None, **style)
    if spread.any():
        axes.fill_between(steps, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)


def _number(value: float | None) -> float:
    """Records have null for what is not finite."""
    return float("nan") if value is None else value
