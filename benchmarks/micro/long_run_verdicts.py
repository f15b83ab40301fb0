"""Whether memory grows or noise drifts, from what was noted in a long run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from benchmarks.harness.errors import require

# Resident memory may grow by so much over the second half of a run, whatever its length: allocators keep some.
ALLOWED_BYTES = 2**20
# Standard errors by which a mean or a slope of the noise may be off.
ALLOWED_SIGMA = 5.0


def growth(steps: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """How much a quantity grows over the second half of the steps.

    The slope is the median of those of all pairs of points (Theil and Sen), which single jumps do not move, with its
    95 % interval.

    Returns:
        ``growth``, ``low`` and ``high``: the slope and its interval times the steps of the half.
    """
    half = len(steps) // 2
    x, y = steps[half:], values[half:]
    slope, _, low, high = require("scipy.stats").theilslopes(y, x, 0.95)
    length = x[-1] - x[0]
    return {"growth": float(slope * length), "low": float(low * length), "high": float(high * length)}


def z_of_mean(ratios: Sequence[float], expected: float = 1.0) -> float:
    """How many standard errors the mean is off."""
    return (statistics.fmean(ratios) - expected) / (statistics.stdev(ratios) / math.sqrt(len(ratios)))


def z_of_slope(ratios: Sequence[float]) -> float:
    """How many standard errors the slope of a fitted line is off 0."""
    fitted = require("scipy.stats").linregress(range(len(ratios)), ratios)
    return float(fitted.slope / fitted.stderr)


def windows(ratios: Sequence[float], number: int) -> list[list[float]]:
    """Cut into so many parts of nearly equal length."""
    edges = [round(part * len(ratios) / number) for part in range(number + 1)]
    return [list(ratios[start:stop]) for start, stop in pairwise(edges)]


def judge(run: dict[str, Any], number: int) -> dict[str, Any]:
    """What the notes of a run say.

    Args:
        run: ``steps`` at which ``memory`` (dictionaries) and ``storages_left`` were noted, and ``ratios`` by weight.
        number: How many windows to look at.

    Returns:
        Measures and, under ``passed``, for each question whether the answer is as it has to be; None where unknown.
    """
    half = len(run["steps"]) // 2
    late = run["memory"][half:]
    resident = [point["resident_bytes"] for point in run["memory"]]
    grown = None if None in resident else growth(run["steps"], resident)
    means = {
        name: [(statistics.fmean(part), z_of_mean(part)) for part in windows(ratios, number)]
        for name, ratios in run["ratios"].items()
    }
    slopes = {name: z_of_slope(ratios) for name, ratios in run["ratios"].items()}
    worst_mean = max(abs(z) for parts in means.values() for _, z in parts)
    worst_slope = max(abs(z) for z in slopes.values())
    return {
        "resident_growth_bytes": grown,
        "windows": means,
        "slopes": slopes,
        "worst_window_z": worst_mean,
        "worst_slope_z": worst_slope,
        "passed": {
            "resident memory": None if grown is None else grown["low"] <= ALLOWED_BYTES,
            "tensors": len({point["tensors"] for point in late}) == 1,
            "tensor bytes": len({point["tensor_bytes"] for point in late}) == 1,
            "saved storages": not any(run["storages_left"]),
            "noise in every window": worst_mean <= ALLOWED_SIGMA,
            "slope of the noise": worst_slope <= ALLOWED_SIGMA,
        },
    }
