"""Formulas of docs/theory.md for what is sketched and how it is stored, by exact sums over all that can be drawn.

``enumeration`` lists the matrices from their definitions; closed forms are typed from the page; where the library
states a formula, it is compared as well.
"""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from rmm_gnn import (
    CountSketch,
    RMMConfig,
    StochasticCodec,
)
from rmm_gnn.anchor import fit_anchor, residual
from rmm_gnn.diagnostics import (
    estimate_moments,
    rmm_variance,
)
from rmm_gnn.sketches.blocks import pair_share
from tests.docs import enumeration as every
from tests.docs.theory import CLOSE, check, data, sums


def test_centring_and_anchors():
    """The identities for any m and A, and the mean and the noise of the whole estimate."""
    x, y = data(3, columns=2)
    x_0, _ = data(3, columns=2)
    x_0 = x_0 + torch.randn(3, 2, dtype=torch.float64)
    m, coefficients = torch.randn(2, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    rest = x - x_0 @ coefficients - m
    exact = (y.T @ x_0) @ coefficients + torch.outer(y.sum(0), m)
    torch.testing.assert_close(y.T @ rest + exact, y.T @ x, **CLOSE)
    draws = list(every.independent_entries(3, 2, every.SIGN))
    estimates = [(p, (s.T @ y).T @ (s.T @ rest) + exact) for p, s in draws]
    torch.testing.assert_close(every.expectation(estimates, lambda g: g), y.T @ x, **CLOSE)
    noise = every.expectation(estimates, lambda g: (g - y.T @ x).square().sum())
    a, c, d = sums(rest, y)
    assert math.isclose(float(noise), (a + c - 2 * d) / 2, rel_tol=1e-9)
    config = RMMConfig(size=2, sketch="rademacher")
    fitted = residual(x, fit_anchor(x, x_0, center=True, workspace_bytes=2**20))
    a, c, d = sums(fitted, y)
    assert math.isclose(float(rmm_variance(x, y, config, anchor=x_0)), (a + c - 2 * d) / 2, rel_tol=1e-6)


def test_centring_can_cost():
    """a always falls, but a + c - 2d need not: the example of the page."""
    x, y = every.matrix([[1.0], [2.0]]), every.matrix([[1.0], [-2.0]])
    (a, c, d), (a_after, c_after, d_after) = sums(x, y), sums(x - x.mean(0), y)
    assert a_after < a
    assert (a + c - 2 * d, a_after + c_after - 2 * d_after) == (0.0, 2.25)
    for rows, expected in ((x, 0.0), (x - x.mean(0), 2.25)):
        check(every.balanced_count_sketch(2, 1), rows, y, expected, CountSketch(), 1)


def grid_rounding(shares, levels=8):
    """All roundings of a matrix of fractions by u_ij = r_i + c_j mod 1, r and c on a grid: (probability, rounded)."""
    rows, columns = shares.shape
    grid = [Fraction(step, levels) for step in range(levels)]
    for numbers in itertools.product(grid, repeat=rows + columns):
        r, c = numbers[:rows], numbers[rows:]
        u = [[(r[i] + c[j]) % 1 for j in range(columns)] for i in range(rows)]
        rounded = [[math.floor(Fraction(float(shares[i, j])) + u[i][j]) for j in range(columns)] for i in range(rows)]
        yield 1 / levels ** (rows + columns), every.matrix(rounded)


SHARES = torch.tensor([[0.25, 0.625], [0.5, 1.875]], dtype=torch.float64)  # multiples of 1/8


def test_stochastic_rounding():
    """Mean, variance, and that any two entries are uncorrelated, although r_i + c_j has few independent numbers."""
    draws = list(grid_rounding(SHARES))
    torch.testing.assert_close(every.expectation(draws, lambda q: q), SHARES, **CLOSE)
    covariance = every.expectation(draws, lambda q: torch.outer((q - SHARES).flatten(), (q - SHARES).flatten()))
    fraction = SHARES.frac().flatten()
    torch.testing.assert_close(covariance, torch.diag(fraction * (1 - fraction)), **CLOSE)


def test_rounding_through_the_sketch():
    """Given S, the rounding adds sum_r |y~_r|^2 sum_n Var; over S and rounding both parts add."""
    y_sketch = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    fraction = SHARES.frac()
    closed = (y_sketch.square().sum(1) * (fraction * (1 - fraction)).sum(1)).sum()
    found = every.expectation(grid_rounding(SHARES), lambda q: (y_sketch.T @ (q - SHARES)).square().sum())
    torch.testing.assert_close(found, closed, **CLOSE)


def test_a_product_of_four_roundings_is_not_as_if_independent():
    """u_11 - u_12 - u_21 + u_22 is whole: moments of order four differ, those of order two do not."""
    shares = torch.full((2, 2), 0.5, dtype=torch.float64)
    product = every.expectation(grid_rounding(shares), lambda q: (q - shares).prod())
    assert abs(float(product)) > 0.01


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_outward_rounding_of_offset_and_step(bits):
    """Every value lies in the range of the codes, and the step is hardly wider than need be."""
    generator = torch.Generator().manual_seed(bits)
    rows = torch.randn(500, 7, generator=generator) * 10 ** torch.randn(500, 1, generator=generator)
    rows += 3 * torch.randn(500, 1, generator=generator)
    offset, step = StochasticCodec(bits).encode_matrix(rows, torch.tensor(0))[1].double().chunk(2, dim=1)
    low, high, levels = rows.double().amin(1, keepdim=True), rows.double().amax(1, keepdim=True), 2**bits - 1
    assert (offset <= low).all() and (offset >= low - 2**-7 * low.abs() - 1e-38).all()
    # The division is that of float32.
    assert (offset + levels * step >= high - 2**-22 * high.abs()).all()
    assert (step <= (1 + 2**-7) * (high - offset) / levels * (1 + 2**-20)).all()


# As the page has them, for rows of 64 normal numbers: v_b, and b (1 + v_b).
V_OF_BITS = {32: 0.0, 8: 0.00006, 4: 0.017, 2: 0.41, 1: 4.6}
PRICE_OF_BITS = {32: 32.0, 8: 8.0, 4: 4.1, 2: 2.8, 1: 5.6}


def test_many_rows_in_few_bits():
    """V = a/k (1 - k/B + v_b) for rows alike, the page's v_b, and at equal bytes two bits beat 32, 8, 4 and 1."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(4096, 64, generator=generator), torch.randn(4096, 16, generator=generator)
    a, noise = float(x.square().sum() * y.square().sum()), {}
    for bits, codec in ((32, "fp32"), (8, "int8"), (4, "int4"), (2, "int2"), (1, "int1")):
        size = 1024 // bits
        noise[bits] = float(rmm_variance(x, y, RMMConfig(size=size, center=False, codec=codec)))
        predicted = a / size * (1 - size / 4096 + V_OF_BITS[bits])
        assert abs(noise[bits] / predicted - 1) < 0.15, (bits, noise[bits] / predicted)
    assert min(noise, key=noise.get) == 2
    rows = torch.randn(4000, 64, generator=generator)
    spread = float((rows.amax(1) - rows.amin(1)).square().mean())
    assert abs(spread**0.5 - 4.7) < 0.1
    for bits in (8, 4, 2, 1):
        v = float(StochasticCodec(bits).variance(rows).mean())
        assert abs(v / V_OF_BITS[bits] - 1) < 0.1, (bits, v)
        if bits > 1:
            assert abs(v / (spread / (6 * (2**bits - 1) ** 2)) - 1) < 0.2, (bits, v)
    assert {bits: round(bits * (1 + v), 1) for bits, v in V_OF_BITS.items()} == PRICE_OF_BITS


def test_products_of_squared_norms_of_sketch_rows():
    """The three means that ``estimate_moments`` solves for a, c and d."""
    x, y = data(4)
    a, c, d = sums(x, y)
    p = pair_share(4, 3)
    draws = list(every.balanced_count_sketch(4, 3))
    rows = every.expectation(draws, lambda s: ((s.T @ x).square().sum(1) * (s.T @ y).square().sum(1)).sum())
    product = every.expectation(draws, lambda s: ((s.T @ x).T @ (s.T @ y)).square().sum())
    total = every.expectation(draws, lambda s: (s.T @ x).square().sum() * (s.T @ y).square().sum())
    assert math.isclose(float(rows), d + p * (a - d) + 2 * p * (c - d))
    assert math.isclose(float(product), c + p * (a + c - 2 * d))
    assert math.isclose(float(total), a + 2 * p * (c - d))
    found = every.expectation(draws, lambda s: torch.stack(estimate_moments(s.T @ x, s.T @ y, 4)))
    torch.testing.assert_close(found, every.matrix([a, c, d]), rtol=1e-8, atol=1e-8)


def test_bias_of_coded_normalisation():
    """One channel: the gradient's product of two estimates is off by g_i v_i / M, at most g_i s^2 / (4 M)."""
    g = every.matrix([[1.0, -2.0], [0.5, 3.0]])
    fraction, count = SHARES.frac(), SHARES.numel()
    v = fraction * (1 - fraction)
    found = every.expectation(grid_rounding(SHARES), lambda q: q * (g * q).sum() / count)
    torch.testing.assert_close(found, SHARES * (g * SHARES).sum() / count + g * v / count, **CLOSE)
    assert (v <= 0.25).all()


def test_bias_of_sketched_normalisation():
    """For one position and for two."""
    generator = torch.Generator().manual_seed(3)
    for positions in (1, 2):
        x = torch.randn(4, positions, generator=generator, dtype=torch.float64)
        g = torch.randn(4, positions, generator=generator, dtype=torch.float64)
        count, p = x.numel(), pair_share(4, 2)
        inner = (g * x).sum()
        draws = list(every.balanced_count_sketch(4, 2))
        found = every.expectation(draws, lambda s: (s @ s.T @ x) * (g * (s @ s.T @ x)).sum() / count)  # noqa: B023
        bias = p / count * (g @ x.T @ x + x @ g.T @ x - 2 * (g * x).sum(1, keepdim=True) * x)
        torch.testing.assert_close(found, x * inner / count + bias, **CLOSE)
        covariance = every.expectation(draws, lambda s: torch.outer((s @ s.T @ x)[:, 0], (s @ s.T @ x)[:, 0]))  # noqa: B023
        first = x[:, 0]
        expected = (1 + p) * torch.outer(first, first)
        expected[range(4), range(4)] = first**2 + p * (first @ first - first**2)
        torch.testing.assert_close(covariance, expected, **CLOSE)
