"""The noise of a layer under any config, from one measurement, is that of the exact functions."""

import pytest
import torch

from rmm_gnn import RMMConfig
from rmm_gnn.diagnostics import rmm_variance
from rmm_gnn.planning.layer_noise import measure_layer


@pytest.fixture(scope="module")
def layer():
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1000, n, generator=generator) for n in (12, 6))
    x += 1
    return x, y, measure_layer("weight", x, y, RMMConfig())


@pytest.mark.parametrize("codec", ["fp32", "int8", "int2", "int1"])
@pytest.mark.parametrize("rate", [1.0, 0.4, 0.1, 0.03, 0.004])  # between the measured rates, and beyond
def test_it_is_that_of_the_exact_function(layer, rate, codec):
    x, y, noise = layer
    config = RMMConfig(rate=rate, codec=codec)
    assert noise.center
    expected = rmm_variance(x, y, config, num_draws=5) / (x.T @ y).square().sum()
    assert noise.noise(config) == pytest.approx(float(expected), rel=0.1, abs=1e-9)


def test_the_size_counts_not_the_rate_that_asked_for_it(layer):
    _, _, noise = layer
    clamped = noise.noise(RMMConfig(rate=0.01, min_size=400, codec="int1"))
    assert clamped == pytest.approx(noise.noise(RMMConfig(rate=0.4, codec="int1")))
