"""Data for the formulas of docs/theory.md, and how a closed form is compared with the sum over all S."""

import math

import torch

from tests.docs import enumeration as every

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
