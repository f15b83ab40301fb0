"""The noise of one layer's weight gradient under any config, from one look at its input and its gradient."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rmm_gnn.codecs import get_codec
from rmm_gnn.config import RMMConfig
from rmm_gnn.control_variates import column_means
from rmm_gnn.diagnostics.variance import rounding_variances
from rmm_gnn.sketches.moments import Moments, moments

# A plan decides sizes by the rate.
RATE_ALONE: dict[str, Any] = {"size": None, "min_size": None, "max_size": None}
LINEAR_CODECS = ("fp32", "int8", "int4", "int2", "int1")
# Where the rounding noise is measured; between these rates it is interpolated.
MEASURED_RATES = (1.0, 0.5, 0.25, 0.1, 0.04, 0.015, 0.005)
# Sketch rows from which it is measured; they are exchangeable.
_SAMPLED_ROWS = 2048


@dataclass(frozen=True, eq=False)
class LayerNoise:
    """What a weight's gradient is worth, and the noise of one product's share in it by what is kept of X [B, N].

    Attributes:
        name: Of the weight.
        num_rows: B.
        num_columns: N.
        signal: |X^T Y|^2; for a weight that is used several times, of the sum over its uses.
        plain: Moments of X and Y.
        centred: The same with X less its column means.
        rounding: Noise of each stochastic codec at each of `MEASURED_RATES`, as S^T X is kept with the better centring.
    """

    name: str
    num_rows: int
    num_columns: int
    signal: float
    plain: Moments
    centred: Moments
    rounding: dict[str, list[float]]

    @property
    def center(self) -> bool:
        """Whether centring lowers the noise of a sketch."""
        return _spread(self.centred) < _spread(self.plain)

    def noise(self, config: RMMConfig) -> float:
        """Noise to signal under ``config``, whose centring is this layer's."""
        m = self.centred if config.center else self.plain
        variance = config.family.variance_of_moments(m, self.num_rows, config.sketch_size(self.num_rows))
        assert variance is not None
        share = config.sketch_size(self.num_rows) / self.num_rows
        rounding = self._rounding(config.codec, share) if config.codec in self.rounding else 0.0
        return (max(0.0, float(variance)) + rounding) / self.signal if self.signal > 0 else 0.0

    def _rounding(self, codec: Any, rate: float) -> float:
        """Interpolate the logarithm over that of the rate; beyond the measured ones, the nearest goes on as 1/rate."""
        noise = self.rounding[codec]
        if rate <= MEASURED_RATES[-1]:
            return noise[-1] * MEASURED_RATES[-1] / rate
        for (high, upper), (low, lower) in itertools.pairwise(zip(MEASURED_RATES, noise, strict=True)):
            if rate >= low:
                if min(upper, lower) <= 0:
                    return max(upper, lower)
                share = math.log(rate / high) / math.log(low / high)
                return math.exp((1 - share) * math.log(upper) + share * math.log(lower))
        raise AssertionError(rate)


def measure_layer(name: str, rows: Tensor, gradient: Tensor, settings: RMMConfig) -> LayerNoise:
    """Measure moments and rounding noise of X [B, N] and Y [B, M]."""
    mean = column_means(rows, settings.workspace_bytes)
    plain, centred = moments(rows, gradient), moments(rows, gradient, mean)
    subtracted = mean if _spread(centred) < _spread(plain) else None
    codecs = [codec for codec in LINEAR_CODECS if get_codec(codec).rounds_at_random]
    rounding: dict[str, list[float]] = {codec: [] for codec in codecs}
    seed = torch.zeros((), dtype=torch.int64, device=rows.device)
    for rate in MEASURED_RATES:
        config = replace(settings, **RATE_ALONE, rate=rate, center=subtracted is not None)
        variances = rounding_variances(rows, gradient, config, codecs, seed, subtracted, _SAMPLED_ROWS)
        for codec, variance in zip(codecs, variances, strict=True):
            rounding[codec].append(float(variance))
    return LayerNoise(name, rows.shape[0], rows.shape[1], float(plain.c), plain, centred, rounding)


def _spread(m: Moments) -> float:
    return float(m.a + m.c - 2.0 * m.d)
