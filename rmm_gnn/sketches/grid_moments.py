"""The variance of a tensor product of two sketches of the sides of a grid, from sums over pairs of rows of the grid."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype


def grid_variance(
    x: Tensor,  # [B, N]
    y: Tensor,  # [B, M]
    mean: Tensor | None,  # [N]
    sides: tuple[int, int],
    shares: tuple[float, float],
) -> Tensor:
    """Return the variance that ``KroneckerSketch`` derives, for any factors with its fourth moment; a float64 scalar.

    Sums are taken over pairs of lines of the shorter side.  A line is the rows that share a place on it: a sequence, or
    a place in all sequences.

    Args:
        x: X; missing rows at the end of the grid are zeros.
        y: Y.
        mean: Subtracted from the rows of X; None for nothing.
        sides: n and L.
        shares: p_1 and p_2, how likely two rows of a side share a bucket of its factor.
    """
    short = 0 if sides[0] < sides[1] else 1
    line_share, share = shares[short], shares[1 - short]  # of lines, and of rows of a line
    if line_share == 0 and share == 0:
        return x.new_zeros((), dtype=torch.float64)
    count = sides[short]
    lines = [_Line(x, y, mean, sides, short, place) for place in range(count)]
    whole = x.new_zeros((x.shape[1], y.shape[1]), dtype=torch.float64)
    sums = {name: x.new_zeros((), dtype=torch.float64) for name in ("pairs", "gram", "crossed", "within", "across")}
    x_squares, y_squares = [], []
    for t, line in enumerate(lines):
        x_t, y_t = line.load()
        for u in range(t, count):
            x_u, y_u = (x_t, y_t) if u == t else lines[u].load()
            once = 1.0 if u == t else 2.0
            product = x_t.T @ y_u
            other = product if u == t else x_u.T @ y_t
            sums["pairs"] += _square(product) if u == t else _square(product) + _square(other)
            sums["crossed"] += once * (product * other).sum(dtype=torch.float64)
            # Of both lines, the inner products of their rows, one by one.
            x_inner, y_inner = ((p * q).sum(1, dtype=torch.float64) for p, q in ((x_t, x_u), (y_t, y_u)))
            sums["gram"] += once * x_inner.sum() * y_inner.sum()
            sums["across"] += once * x_inner.dot(y_inner)
            if u == t:
                whole += product
                sums["within"] += _square(product)
                x_squares.append(x_inner)
                y_squares.append(y_inner)
    x_norms, y_norms = torch.stack(x_squares), torch.stack(y_squares)
    a, c, d = x_norms.sum() * y_norms.sum(), whole.square().sum(), (x_norms * y_norms).sum()
    a_lines = (x_norms.sum(1) * y_norms.sum(1)).sum() + (x_norms.sum(0) * y_norms.sum(0)).sum()
    both = line_share * share * (a + c - 2.0 * a_lines + 4.0 * d)
    of_lines = line_share * (1.0 + share) * (sums["pairs"] - 2.0 * sums["within"])
    of_rows = share * (1.0 + line_share) * (sums["gram"] - 2.0 * sums["across"])
    return both + of_lines + of_rows + (line_share + share) * sums["crossed"]


class _Line:
    """The rows of X and Y at one place of the short side, in the accumulation type, with zeros for missing ones."""

    def __init__(
        self, x: Tensor, y: Tensor, mean: Tensor | None, sides: tuple[int, int], short: int, place: int
    ) -> None:
        outer, inner = sides
        if short == 0:
            rows = slice(place * inner, (place + 1) * inner)
        else:
            rows = slice(place, outer * inner, inner)
        self._x, self._y, self._mean, self._length = x[rows], y[rows], mean, sides[1 - short]

    def load(self) -> tuple[Tensor, Tensor]:
        dtype = accumulation_dtype(self._x.dtype)
        x, y = self._x.to(dtype), self._y.to(dtype)
        x = x if self._mean is None else x - self._mean.to(dtype)
        missing = self._length - x.shape[0]
        if missing:
            x, y = (torch.nn.functional.pad(part, (0, 0, 0, missing)) for part in (x, y))
        return x, y


def _square(product: Tensor) -> Tensor:
    return torch.linalg.vector_norm(product, dtype=torch.float64).square()
