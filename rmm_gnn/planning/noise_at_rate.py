"""What a measured noise means at another rate, and as the quantity that is held at its target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from rmm_gnn.config import RMMConfig
from rmm_gnn.diagnostics.noise_record import NoiseRecord
from rmm_gnn.sketches.moments import Moments

# Of D2_RMM, D2_SGD and |X^T Y|^2; nan or inf where they say nothing, as in a step without a gradient.
QUANTITIES: dict[str, Callable[[float, float, float], float]] = {
    "ratio": lambda added, data, signal: _over(added, data),
    "share": lambda added, data, signal: _over(added, added + data),
    "relative": lambda added, data, signal: _over(added, signal),
}


def quantity_at(quantity: str, records: Sequence[NoiseRecord], config: RMMConfig) -> float:
    """Return the quantity of one weight, all its products together, at the rate of ``config``.

    Estimates of variances can come out negative, and count as 0.
    """
    data = sum(_positive(record.sgd_variance) for record in records)
    signal = sum(_positive(record.gradient_square) for record in records)
    return QUANTITIES[quantity](noise_at(records, config), data, signal)


def noise_at(records: Sequence[NoiseRecord], config: RMMConfig) -> float:
    """What the measured noise is at the rate of ``config``: the sketch's as its formula has it, the codec's as 1/k.

    The formula's factor is taken at d = a/B, as for rows of equal norm, and c = 0; for all families but row sampling
    only the factor in front depends on k, and it does not matter.
    """
    one, total = torch.ones((), dtype=torch.float64), 0.0
    for record in records:
        size = config.sketch_size(record.num_rows)
        typical = Moments(one, 0 * one, one / record.num_rows)
        now = config.family.variance_of_moments(typical, record.num_rows, record.sketch_size)
        then = config.family.variance_of_moments(typical, record.num_rows, size)
        factor = shrinking = record.sketch_size / size
        if now is not None and then is not None and float(now) > 0:
            factor = float(then / now)
        total += _positive(record.sketch_variance) * factor + _positive(record.rounding_variance) * shrinking
    return total


def noise_share(records: Sequence[NoiseRecord], config: RMMConfig, rate: float) -> float:
    """Return the noise at another rate over that at the rate of ``config``; where none was measured, that of 1/k."""
    other = replace(config, rate=rate)
    now = noise_at(records, config)
    if now > 0:
        return noise_at(records, other) / now
    return config.sketch_size(records[0].num_rows) / other.sketch_size(records[0].num_rows)


def _positive(value: float) -> float:
    return max(value, 0.0)  # in this order nan stays nan


def _over(part: float, whole: float) -> float:
    return part / whole if whole != 0 else float("nan")
