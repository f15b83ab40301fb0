"""The formulas of docs/theory.md, by exact sums over everything that a random matrix can be.

``enumeration`` lists the matrices from their definitions; the closed forms here are typed from the page; and where the
library states a formula, it is compared as well.  Names of the tests are those in the page's table.
"""

import itertools
import math
import re
from fractions import Fraction
from pydoc import locate

import pytest
import torch

from rmm_gnn import (
    BlockRademacherSketch,
    CountSketch,
    GaussianSketch,
    ImportanceSamplingSketch,
    KroneckerSketch,
    NormSamplingSketch,
    RademacherSketch,
    RMMConfig,
    RowSamplingSketch,
    SORSSketch,
    StochasticCodec,
)
from rmm_gnn.anchor import fit_anchor, residual
from rmm_gnn.diagnostics import (
    alignment,
    estimate_moments,
    paper_ratio_bound,
    paper_rmm_variance,
    rmm_variance,
    sgd_variance,
)
from rmm_gnn.sketches.blocks import pair_share
from tests.docs import enumeration as every
from tests.docs.pages import ROOT, namespace_of

PAGE = (ROOT / "docs" / "theory.md").read_text()
CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def data(num_rows, columns=2, outputs=3):
    """Correlated rows of different norms."""
    generator = torch.Generator().manual_seed(num_rows)
    common = torch.rand(num_rows, 1, generator=generator, dtype=torch.float64) + 0.2
    x = common + 0.7 * torch.randn(num_rows, columns, generator=generator, dtype=torch.float64)
    return x, common - 0.5 * torch.randn(num_rows, outputs, generator=generator, dtype=torch.float64)


def sums(x, y):
    """a, c, d by their definitions as sums over pairs of rows."""
    a = sum(float(xi @ xi) * float(yj @ yj) for xi in x for yj in y)
    c = sum(float(x[i] @ x[j]) * float(y[i] @ y[j]) for i in range(len(x)) for j in range(len(x)))
    d = sum(float(xi @ xi) * float(yi @ yi) for xi, yi in zip(x, y, strict=True))
    return a, c, d


def check(draws, x, y, closed, family=None, size=None):
    """E S S^T = I, and the mean squared error is ``closed``, and what ``family`` states."""
    draws = list(draws)
    identity = every.expectation(draws, lambda s: s @ s.T)
    torch.testing.assert_close(identity, torch.eye(len(x), dtype=torch.float64), **CLOSE)
    noise = every.expectation(draws, every.estimate_error(x, y))
    assert math.isclose(float(noise), closed, rel_tol=1e-9, abs_tol=1e-9)
    if family is not None:
        assert math.isclose(float(family.variance(x, y, size)), closed, rel_tol=1e-9, abs_tol=1e-9)


# Sketches.


def test_the_three_sums():
    x, y = data(4)
    a, c, d = sums(x, y)
    assert math.isclose(a, float(x.square().sum() * y.square().sum()))
    assert math.isclose(c, float((x.T @ y).square().sum()))
    assert d <= a and c <= a and c <= len(x) * d


def test_general_quadratic_form():
    """The error of any S, from the fourth moments of S alone."""
    x, y = data(3)
    draws = list(every.independent_buckets(3, [2]))
    identity = torch.eye(3, dtype=torch.float64)
    moments = every.expectation(draws, lambda s: torch.einsum("ij,kl->ijkl", s @ s.T - identity, s @ s.T - identity))
    found = torch.einsum("ijkl,ik,jl->", moments, x @ x.T, y @ y.T)
    torch.testing.assert_close(found, every.expectation(draws, every.estimate_error(x, y)), **CLOSE)


@pytest.mark.parametrize("size", [1, 2])
def test_gaussian(size):
    """By a quadrature that is exact for polynomials of degree 5 in each entry; the error has degree 4."""
    x, y = data(3)
    a, c, _ = sums(x, y)
    check(every.independent_entries(3, size, every.GAUSS_HERMITE), x, y, (a + c) / size, GaussianSketch(), size)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rademacher(size):
    x, y = data(3)
    a, c, d = sums(x, y)
    check(every.independent_entries(3, size, every.SIGN), x, y, (a + c - 2 * d) / size, RademacherSketch(), size)


@pytest.mark.parametrize("s", [1.5, 2, 3, 4])
def test_independent_entries_by_their_fourth_moment(s):
    x, y = data(3)
    a, c, d = sums(x, y)
    check(every.independent_entries(3, 2, every.sparse_entry(s)), x, y, (a + c + (s - 3) * d) / 2)


def test_count_sketch_with_independent_buckets():
    x, y = data(3)
    a, c, d = sums(x, y)
    for size in (1, 2, 3):
        check(every.independent_buckets(3, [size]), x, y, (a + c - 2 * d) / size)


def test_sparse_signs():
    """Also with parts of different width, as the family of the documentation has them."""
    x, y = data(3)
    a, c, d = sums(x, y)
    family = namespace_of("docs/examples/sparse_sign_sketch.py")["SparseSignSketch"](nonzeros=2)
    for parts in ([1, 1], [1, 2]):
        closed = (a + c - 2 * d) * sum(1 / width for width in parts) / len(parts) ** 2
        check(every.independent_buckets(3, parts), x, y, closed, family, sum(parts))


@pytest.mark.parametrize(("num_rows", "size"), [(4, 1), (4, 2), (4, 3), (4, 4), (5, 2), (5, 3)])
def test_balanced_count_sketch(num_rows, size):
    """Equal buckets and unequal ones."""
    x, y = data(num_rows)
    a, c, d = sums(x, y)
    quotient, rest = divmod(num_rows, size)
    p = quotient * (num_rows - size + rest) / (num_rows * (num_rows - 1))
    equal = (num_rows - size) / ((num_rows - 1) * size)
    assert math.isclose(p, equal + rest * (size - rest) / (size * num_rows * (num_rows - 1)), abs_tol=1e-15)
    assert math.isclose(p, pair_share(num_rows, size), abs_tol=1e-15)
    check(every.balanced_count_sketch(num_rows, size), x, y, p * (a + c - 2 * d), CountSketch(), size)


def test_balanced_buckets_are_never_worse_than_independent_ones():
    for num_rows in range(2, 60):
        for size in range(1, num_rows + 1):
            assert pair_share(num_rows, size) <= 1 / size


@pytest.mark.parametrize(("num_rows", "size", "blocks"), [(3, 3, 2), (4, 2, 2), (3, 2, 1), (3, 2, 2)])
def test_block_rademacher(num_rows, size, blocks):
    x, y = data(num_rows)
    a, c, d = sums(x, y)
    rows, columns = every.starts(num_rows, blocks), every.starts(size, blocks)
    p = 0.0
    for t in range(blocks):
        count, width = rows[t + 1] - rows[t], columns[t + 1] - columns[t]
        p += count * (count - 1) / (num_rows * (num_rows - 1) * width)
    family = BlockRademacherSketch(block_rows=-(-num_rows // blocks))
    assert family.num_blocks(num_rows, size) == blocks
    check(every.block_rademacher(num_rows, size, blocks), x, y, p * (a + c - 2 * d), family, size)


@pytest.mark.parametrize("num_rows", [3, 4])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_srht(num_rows, size):
    """Three rows are padded to P = 4: at k = B the variance does not vanish then."""
    x, y = data(num_rows)
    a, c, d = sums(x, y)
    transform = every.hadamard(4)
    without = (4 - size) / (3 * size) * (a + c - 2 * d)
    check(every.subsampled_transform(transform, num_rows, size), x, y, without, SORSSketch(), size)
    again = every.subsampled_transform(transform, num_rows, size, replacement=True)
    check(again, x, y, (a + c - 2 * d) / size)


@pytest.mark.parametrize("name", ["dct", "dft"])
@pytest.mark.parametrize("length", [3, 4, 5, 6])
def test_cosine_and_hartley(name, length):
    x, y = data(length)
    _, c, _ = sums(x, y)
    transform = every.cosine(length) if name == "dct" else every.hartley(length)
    torch.testing.assert_close(transform @ transform.T, torch.eye(length, dtype=torch.float64), **CLOSE)
    w = length * transform.square().T @ transform.square()
    torch.testing.assert_close(w, weights_as_printed(name, length), **CLOSE)
    x_norms, y_norms, both = x.square().sum(1), y.square().sum(1), (x @ x.T) * (y @ y.T)
    spread = (w * (torch.outer(x_norms, y_norms) + 2 * both)).sum() - 2 * (w.diagonal() * x_norms * y_norms).sum() - c
    for size in (1, 2):
        closed = float(spread) * (length - size) / ((length - 1) * size)
        draws = every.subsampled_transform(transform, length, size)
        check(draws, x, y, closed, SORSSketch(transform=name), size)


def weights_as_printed(name, length):
    w = torch.empty(length, length, dtype=torch.float64)
    for i, j in itertools.product(range(length), repeat=2):
        if name == "dct":
            w[i, j] = 1 - 1 / length + ((i == j) + (j == length - 1 - i)) / 2
        else:
            w[i, j] = 1 + ((2 * (i - j) % length == 0) - 1 * (2 * (i + j) % length == 0)) / 2
    return w


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


# What is sketched instead of X, and what is added to it.


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


# Normalisation.


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


# The data's own noise, and the paper.


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


# Decisions.


def test_the_best_split_of_bytes():
    """Noise v_i/k_i at beta_i k_i bytes: the least is (sum sqrt(v_i beta_i))^2 over the bytes."""
    generator = torch.Generator().manual_seed(0)
    v, beta = torch.rand(5, generator=generator).double() + 0.1, torch.rand(5, generator=generator).double() + 0.1
    budget = 7.0
    best = (v / beta).sqrt() * budget / (v * beta).sqrt().sum()
    assert math.isclose(float((beta * best).sum()), budget)
    least = float((v * beta).sqrt().sum() ** 2 / budget)
    assert math.isclose(float((v / best).sum()), least)
    for number in range(100):
        k = torch.rand(5, generator=torch.Generator().manual_seed(number)).double() + 0.01
        k *= budget / (beta * k).sum()
        assert float((v / k).sum()) >= least * (1 - 1e-12)


def test_the_best_step_under_noise():
    """eta |g|^2 - L eta^2 (|g|^2 + V)/2 is greatest at |g|^2 / (L (|g|^2 + V))."""
    signal, smoothness, noise = 3.0, 2.0, 5.0

    def gain(eta):
        return eta * signal - smoothness * eta**2 / 2 * (signal + noise)

    best = signal / (smoothness * (signal + noise))
    assert all(gain(best) >= gain(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))


# The page itself.


def test_every_formula_has_its_place_in_the_table():
    labels = re.findall(r"^\$\$ \((\w[\w-]*)\)$", PAGE, flags=re.MULTILINE)
    assert len(labels) == len(set(labels)) >= 40
    assert len(labels) == PAGE.count("\n$$\n"), "every formula ends with '$$ (label)'"
    table = PAGE[PAGE.index("## Where each formula is") :]
    missing = [label for label in labels if f"{{eq}}`{label}`" not in table]
    assert not missing


def test_the_table_names_code_and_tests_that_exist():
    table = PAGE[PAGE.index("## Where each formula is") :]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| {eq}")]
    assert len(rows) >= 25
    for formulas, code, tests in rows:
        for name in re.findall(r"`(rmm_gnn[\w.]*)`", code):
            assert locate(name) is not None, name
        named = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", tests)
        assert named, formulas
        for file, test in named:
            text = (ROOT / (file or "tests/docs/test_theory.py")).read_text()
            assert f"def {test}(" in text, (file, test)
