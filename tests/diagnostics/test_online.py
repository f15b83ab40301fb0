"""The estimates from sketches are right on average, and close where they are said to be."""

import pytest
import torch

from rmm_gnn import RMMConfig
from rmm_gnn.diagnostics import estimate_moments, noise_parts
from rmm_gnn.diagnostics.online import OnlineSketch
from rmm_gnn.sketches import CountSketch, SORSSketch
from rmm_gnn.sketches.moments import moments


def correlated(num_rows, seed=3):
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(num_rows, 1, generator=generator, dtype=torch.float64) + 0.5
    x, y = (torch.randn(num_rows, n, generator=generator, dtype=torch.float64) for n in (5, 4))
    return common * (0.3 + 0.5 * x), common * torch.linspace(-1.0, 2.0, 4, dtype=torch.float64) + 0.3 * y


def estimates(num_rows, size, known, num_seeds=1500):
    x, y = correlated(num_rows)
    exact = moments(x, y)
    given = {"a": exact.a, "d": exact.d} if known else {}
    found = []
    for number in range(num_seeds):
        seed = torch.tensor(1_000_003 * number + 17)
        sketches = [CountSketch().apply(matrix, seed, size) for matrix in (x, y)]
        found.append(torch.stack([*estimate_moments(*sketches, num_rows, **given)]))
    return exact, torch.stack(found)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("num_rows", "size"), [(32, 8), (21, 10)])
def test_moments_are_right_on_average(num_rows, size, known):
    exact, found = estimates(num_rows, size, known)
    if known:
        pairs = [(found[:, 1], exact.c)]
    else:
        spread = found[:, 0] + found[:, 1] - 2 * found[:, 2]
        pairs = [(found[:, 0], exact.a), (spread, exact.a + exact.c - 2 * exact.d)]
        for index in (1, 2):  # too noisy for a power check: see `estimate_moments`
            error = found[:, index].std() / len(found) ** 0.5
            assert abs(found[:, index].mean() - exact[index]) < 5 * error
    # With power: a quarter more would be seen to be wrong.
    for values, expected in pairs:
        error = values.std() / len(values) ** 0.5
        assert abs(values.mean() - expected) < 5 * error < abs(values.mean() - 1.25 * expected)


def test_a_whole_sketch_knows_the_moments():
    """At k = B a count sketch is a signed permutation."""
    x, y = correlated(50)
    seed = torch.tensor(1)
    found = estimate_moments(CountSketch().apply(x, seed, 50), CountSketch().apply(y, seed, 50), 50)
    torch.testing.assert_close(torch.stack([*found]), torch.stack([*moments(x, y)]))


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("codec", ["fp32", "int2"])
def test_the_noise_is_close_to_the_exact_one(center, codec):
    x, y = correlated(5000)
    x = x + 1
    config = RMMConfig(rate=0.1, center=center, codec=codec)
    m, noise = OnlineSketch.of(x, config, torch.tensor(7)).measure(y)
    exact, expected = moments(x, y), noise_parts(x, y, config, num_draws=4)
    torch.testing.assert_close(noise.sketch, expected.sketch, rtol=0.15, atol=0)
    torch.testing.assert_close(noise.rounding, expected.rounding, rtol=0.15, atol=0)
    torch.testing.assert_close(m.a, exact.a)  # these two do not depend on the sketch
    torch.testing.assert_close(m.d, exact.d)


def test_errors():
    x, y = correlated(50)
    with pytest.raises(ValueError, match="'a' must be given together with 'd'"):
        estimate_moments(x, y, 50, a=torch.ones(()))
    with pytest.raises(ValueError, match=r"variance follows from a, c, d \(got 'sors'\)"):
        OnlineSketch.of(x, RMMConfig(sketch=SORSSketch(transform="dct")), torch.tensor(1))
