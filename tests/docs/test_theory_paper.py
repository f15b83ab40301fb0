"""Formulas of docs/theory.md for the data's noise and the paper, by exact sums over all that can be drawn.

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
    GaussianSketch,
    RMMConfig,
)
from rmm_gnn.diagnostics import (
    alignment,
    paper_ratio_bound,
    paper_rmm_variance,
    sgd_variance,
)
from rmm_gnn.sketches.blocks import pair_share
from tests.docs import enumeration as every
from tests.docs.theory import CLOSE, data, sums


def test_noise_of_the_data():
    """The unbiased sample variance of a sum of B draws; and what a sample of the rows adds is (B - k)/k of it."""
    x, y = data(4)
    _, c, d = sums(x, y)
    products = torch.einsum("in,im->inm", x, y)
    by_sample = 4 / 3 * (products - products.mean(0)).square().sum()
    assert math.isclose(float(by_sample), (4 * d - c) / 3)
    assert math.isclose(float(sgd_variance(x, y)), (4 * d - c) / 3)
    for size in (1, 2, 3):
        added = every.expectation(every.subsets_of_rows(4, size), every.estimate_error(x, y))
        assert math.isclose(float(added), (4 - size) / size * (4 * d - c) / 3)


def test_the_papers_variance_has_the_wrong_sign():
    """x = y = 1 and k = 1: the estimate is the square of a Gaussian number, of variance 2; (11) says 0."""
    one = torch.ones(1, 1, dtype=torch.float64)
    draws = list(every.independent_entries(1, 1, every.GAUSS_HERMITE))
    assert math.isclose(float(every.expectation(draws, every.estimate_error(one, one))), 2.0)
    assert paper_rmm_variance(one, one, 1) == 0
    x, y = data(3)
    a, c, _ = sums(x, y)
    # With the first pairing of E[s_i s_j s_k s_l] alone, the proof's, the sum is (11).
    first_pairing = 2 * (a / 2**2 - c / 2**2)
    assert math.isclose(first_pairing, float(paper_rmm_variance(x, y, 2)))


def test_theorem_2_3_does_not_hold():
    """x_i = t_i u, y_i = v/t_i: the numbers of the page, in whole fractions."""
    t = [Fraction(1), Fraction(2), Fraction(4)]
    a = 9 * sum(value**2 for value in t) * sum(1 / value**2 for value in t)
    c, d = Fraction(9 * 3**2), Fraction(9 * 3)
    assert (a, c, 3 * d - c) == (Fraction(3969, 16), 81, 0)
    assert (a + c, a - c, 2 * (a + c) / c) == (Fraction(5265, 16), Fraction(2673, 16), Fraction(65, 8))
    x = every.matrix([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    y = every.matrix([[3.0], [1.5], [0.75]])
    assert sums(x, y) == (float(a), float(c), float(d))
    assert sgd_variance(x, y) == 0
    assert float(GaussianSketch().variance(x, y, 1)) == float(a + c) == 329.0625
    assert float(paper_rmm_variance(x, y, 1)) == float(a - c) == 167.0625
    assert float(paper_ratio_bound(x, y, 1)) == 8.125
    assert math.isclose(float(alignment(x, y)), float(c / a))


def test_what_the_proof_of_theorem_2_3_would_need():
    """With (11), (12) is 2 a c <= (a + c) B d; the proof's B d >= c gives it without the term 2 a alone."""
    generator = torch.Generator().manual_seed(0)
    for number in range(200):
        x, y = data(3 + number % 3)
        if number % 2:
            t = torch.rand(len(x), 1, generator=generator, dtype=torch.float64) + 0.1
            x, y = t * x[:1], y[:1] / t + 0.05 * torch.randn(len(x), 3, generator=generator, dtype=torch.float64)
        a, c, d = sums(x, y)
        num_rows, alpha = len(x), c / a
        holds = (a - c) / 2 <= (num_rows - 1) / 2 * (1 + alpha) / alpha * (num_rows * d - c) / (num_rows - 1)
        assert holds == (2 * a * c <= (a + c) * num_rows * d)


@pytest.mark.parametrize("num_rows", [2, 3, 6])
@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.9])
def test_no_function_of_alpha_bounds_the_ratio(num_rows, alpha):
    """Rows 1, ..., 1, t with D2_SGD = 0; t by bisection, so that alpha is what is asked for."""
    low, high = 1.0, 1e6
    for _ in range(200):
        t = (low + high) / 2
        a = (num_rows - 1 + t**2) * (num_rows - 1 + t**-2)
        low, high = (low, t) if num_rows**2 / a < alpha else (t, high)
    x = torch.ones(num_rows, 1, dtype=torch.float64)
    x[-1] = t
    y = 1 / x
    assert math.isclose(float(alignment(x, y)), alpha, rel_tol=1e-9)
    assert abs(float(sgd_variance(x, y))) < 1e-12
    closed = pair_share(num_rows, 1) * num_rows * (num_rows / alpha + num_rows - 2)
    assert math.isclose(float(CountSketch().variance(x, y, 1)), closed, rel_tol=1e-9)
    assert closed > 1


def test_sors_without_signs_and_with_the_wrong_scale():
    """Equal rows: without signs all is in one row of H X. With k B for B/k, E S S^T is k^2 I."""
    x, y = torch.ones(4, 1, dtype=torch.float64), torch.ones(4, 1, dtype=torch.float64)
    a, _, _ = sums(x, y)
    unsigned = list(every.subsampled_transform(every.hadamard(4), 4, 2, replacement=True, signed=False))
    assert math.isclose(float(every.expectation(unsigned, every.estimate_error(x, y))), (4 - 1) * a / 2)
    signed = every.subsampled_transform(every.hadamard(4), 4, 2, replacement=True)
    assert math.isclose(float(every.expectation(signed, every.estimate_error(x, y))), (2 - 2 / 4) * a / 2)
    wrong = every.expectation(unsigned, lambda s: 2 * 2 * s @ s.T)  # kB over B/k is k^2
    torch.testing.assert_close(wrong, 4 * torch.eye(4, dtype=torch.float64), **CLOSE)


def test_a_frozen_sketch_is_a_bias():
    """The mean of T errors: a T-th of the variance with a fresh S at every step, all of it with one S."""
    x, y = data(3)
    draws = [(p, (x.T @ s) @ (s.T @ y) - x.T @ y) for p, s in every.independent_buckets(3, [2])]
    once = float(every.expectation(draws, lambda error: error.square().sum()))
    merged = {}
    for chance, error in draws:  # many S give one error
        key = tuple(round(float(value), 9) for value in error.flatten())
        merged[key] = merged.get(key, 0.0) + chance
    distinct = [(chance, every.matrix(key).view_as(draws[0][1])) for key, chance in merged.items()]
    fresh = [(p * q, (one + two) / 2) for (p, one), (q, two) in itertools.product(distinct, distinct)]
    assert math.isclose(float(every.expectation(fresh, lambda error: error.square().sum())), once / 2, rel_tol=1e-6)


def test_a_rate_never_keeps_nothing():
    assert int(0.1 * 9) == 0
    assert RMMConfig(rate=0.1).sketch_size(9) == 1
    assert RMMConfig(rate=1e-9).sketch_size(5) == 1
