"""Formulas of docs/theory.md for signs, Gaussian entries and transforms, by exact sums over all that can be drawn.

``enumeration`` lists the matrices from their definitions; closed forms are typed from the page; where the library
states a formula, it is compared as well.
"""

import itertools
import math

import pytest
import torch

from rmm_gnn import (
    BlockRademacherSketch,
    CountSketch,
    GaussianSketch,
    RademacherSketch,
    SORSSketch,
)
from rmm_gnn.sketches.blocks import pair_share
from tests.docs import enumeration as every
from tests.docs.pages import namespace_of
from tests.docs.theory import CLOSE, check, data, sums


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
