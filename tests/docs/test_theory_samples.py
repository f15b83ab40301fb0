"""Formulas of docs/theory.md for samples and products, and the bound for all, by exact sums over all that can be drawn.

``enumeration`` lists the matrices from their definitions; closed forms are typed from the page; where the library
states a formula, it is compared as well.
"""

import math

import pytest
import torch

from rmm_gnn import (
    ImportanceSamplingSketch,
    KroneckerSketch,
    NormSamplingSketch,
    RowSamplingSketch,
)
from rmm_gnn.sketches.blocks import pair_share
from tests.docs import enumeration as every
from tests.docs.theory import CLOSE, check, data, sums


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_row_sampling(size):
    x, y = data(4)
    _, c, d = sums(x, y)
    uniform = (4 * d - c) / size
    check(every.sampled_rows([0.25] * 4, size), x, y, uniform, RowSamplingSketch(replacement=True), size)
    check(every.subsets_of_rows(4, size), x, y, uniform * (4 - size) / 3, RowSamplingSketch(), size)


def test_norm_sampling():
    x, y = data(4)
    _, c, _ = sums(x, y)
    norms, share = x.norm(dim=1), 0.3
    q = (1 - share) * norms / norms.sum() + share / 4
    weighted = float((x.square().sum(1) * y.square().sum(1) / q).sum())
    check(every.sampled_rows(q, 2), x, y, (weighted - c) / 2, NormSamplingSketch(uniform_share=share), 2)


def test_the_best_probabilities_and_the_price_of_bad_ones():
    x, y = data(4)
    _, _, d = sums(x, y)
    z = x.norm(dim=1) * y.norm(dim=1)
    best = float(z.sum() ** 2)
    assert math.isclose(float((z.square() / (z / z.sum())).sum()), best)
    for number in range(50):
        q = torch.rand(4, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        q = 0.8 * q / q.sum() + 0.2 / 4
        assert best <= float((z.square() / q).sum()) <= 4 * d / 0.2
    # A row that is never drawn is missing from the mean.
    s_mean = every.expectation(every.sampled_rows([0.0, 1 / 3, 1 / 3, 1 / 3], 2), lambda s: s @ s.T)
    torch.testing.assert_close(s_mean, torch.diag(torch.tensor([0.0, 1, 1, 1], dtype=torch.float64)), **CLOSE)


def test_importance_sampling_with_certain_rows():
    """The probabilities and the number of certain rows are the library's; the rest is summed over all draws."""
    x, y = data(5)
    x[1] *= 20.0
    family, size, norms = ImportanceSamplingSketch(uniform_share=0.2, top_share=0.5), 4, y.norm(dim=1)
    q, top, num_certain = family.chances(x, None, norms, size, 2**20)
    certain = top[: int(num_certain)].tolist()
    assert certain[0] == 1 and len(certain) < size
    rest = [row for row in range(5) if row not in certain]
    weights = x.norm(dim=1) * norms
    torch.testing.assert_close(q[rest], 0.8 * weights[rest] / weights[rest].sum() + 0.2 / len(rest), **CLOSE)
    z = x.square().sum(1) * y.square().sum(1)
    closed = (float((z[rest] / q[rest]).sum()) - float((x[rest].T @ y[rest]).square().sum())) / (size - len(certain))
    draws = list(every.certain_and_sampled_rows(certain, q, size))
    noise = every.expectation(draws, every.estimate_error(x, y))
    assert math.isclose(float(noise), closed, rel_tol=1e-9)
    assert math.isclose(float(family.variance(x, y, size, row_norms=norms)), closed, rel_tol=1e-9)
    assert closed <= 5 * sums(x, y)[2] / (size * 0.2 * 0.5)


@pytest.mark.parametrize(
    ("outer", "inner", "first", "second"), [(3, 2, 2, 1), (2, 3, 1, 2), (3, 2, 1, 2), (4, 1, 2, 1)]
)
def test_kronecker(outer, inner, first, second):
    x, y = data(outer * inner)
    a, c, d = sums(x, y)
    p_1, p_2 = pair_share(outer, first), pair_share(inner, second)
    grid_x, grid_y = x.view(outer, inner, -1), y.view(outer, inner, -1)
    a_1, c_1, e_1 = of_lines(grid_x, grid_y)
    a_2, c_2, e_2 = of_lines(grid_x.transpose(0, 1), grid_y.transpose(0, 1))
    q = torch.einsum("bln,cmn,bmo,clo->", grid_x, grid_x, grid_y, grid_y)
    closed = p_1 * p_2 * (a + c - 2 * a_1 - 2 * a_2 + 4 * d)
    closed += p_1 * (1 + p_2) * (e_1 - 2 * c_1) + p_2 * (1 + p_1) * (e_2 - 2 * c_2) + (p_1 + p_2) * q
    draws = every.products(every.balanced_count_sketch(outer, first), every.balanced_count_sketch(inner, second))
    check(draws, x, y, float(closed))
    family = KroneckerSketch(inner_rows=inner)
    if family.admissible_size(outer * inner, first * second) == first * second:
        grid = family.grid(outer * inner, first * second)
        if (grid.outer_size, grid.inner_size) == (first, second):
            assert math.isclose(float(family.variance(x, y, first * second)), float(closed), rel_tol=1e-6)


def of_lines(x, y):
    """a_1, c_1 and e_1 of grids [n, L, *]."""
    products = torch.einsum("bln,blm->bnm", x, y).square().sum()
    within = torch.einsum("bln,bmn->lm", x, x) * torch.einsum("bln,bmn->lm", y, y)
    return (x.square().sum((1, 2)) * y.square().sum((1, 2))).sum(), products, within.sum()


def test_no_unbiased_sketch_is_better_on_average():
    """Sum of E M_ij^2 over all pairs is at least B (B - k)/k; which families attain it."""
    num_rows, size = 4, 2
    least = num_rows * (num_rows - size) / size

    def spread(draws):
        identity = torch.eye(num_rows, dtype=torch.float64)
        return float(every.expectation(draws, lambda s: (s @ s.T - identity).square().sum()))

    assert math.isclose(spread(every.balanced_count_sketch(num_rows, size)), least)
    assert math.isclose(spread(every.subsampled_transform(every.hadamard(4), num_rows, size)), least)
    assert math.isclose(spread(every.subsets_of_rows(num_rows, size)), least)
    for draws in (
        every.independent_entries(num_rows, size, every.SIGN),
        every.independent_buckets(num_rows, [size]),
        every.sampled_rows([0.25] * 4, size),
    ):
        assert spread(draws) > 1.2 * least
