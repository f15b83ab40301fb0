"""The exponent with which a measured quantity grows, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.harness.errors import require

# A line through two points has no interval.
MIN_POINTS = 3
# How many of the last points are fitted where fewer than MIN_POINTS are large enough.
LAST = 4


class PowerLaw(NamedTuple):
    """``factor * size ** exponent``.

    Attributes:
        exponent: Its estimate.
        low: Lower end of the exponent's 95 % interval.
        high: Upper end.
        factor: The value at size 1.
        start: The smallest size that was fitted.
        stop: The largest.
        points: How many were fitted.
    """

    exponent: float
    low: float
    high: float
    factor: float
    start: float
    stop: float
    points: int

    def at(self, size: float) -> float:
        """The fitted value."""
        return self.factor * size**self.exponent

    def format(self) -> str:
        """The exponent, with its interval behind it."""
        return f"{self.exponent:.2f} ({self.low:.2f} to {self.high:.2f})"


def fit(sizes: Sequence[float], values: Sequence[float], start: float = 0.0) -> PowerLaw | None:
    """Fit a power law by least squares of the logarithms.

    The interval is Student's, for independent normal errors of the logarithms: it shows how well one power law
    describes the values, not how well each was measured.

    Args:
        sizes: Positive and rising.
        values: Positive, one for each size.
        start: Smaller sizes are left out; where fewer than ``MIN_POINTS`` remain, all but the ``LAST`` largest are.

    Returns:
        The fit, or None for fewer than ``MIN_POINTS`` sizes.
    """
    if len(sizes) < MIN_POINTS:
        return None
    chosen = [place for place, size in enumerate(sizes) if size >= start]
    if len(chosen) < MIN_POINTS:
        chosen = list(range(len(sizes)))[-LAST:]
    stats = require("scipy.stats")
    x, y = (np.log([series[place] for place in chosen]) for series in (sizes, values))
    line = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(chosen) - 2) * line.stderr)
    exponent = float(line.slope)
    return PowerLaw(
        exponent=exponent,
        low=exponent - half,
        high=exponent + half,
        factor=float(np.exp(line.intercept)),
        start=sizes[chosen[0]],
        stop=sizes[chosen[-1]],
        points=len(chosen),
    )
