"""The three sums that every closed-form variance is made of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype

_TILE_BYTES = 1 << 24


class Moments(NamedTuple):
    """float64 scalars: ``a = |X|^2 |Y|^2``, ``c = |X^T Y|_F^2``, ``d = sum_i |x_i|^2 |y_i|^2``."""

    a: Tensor
    c: Tensor
    d: Tensor


def moments(x: Tensor, y: Tensor, mean: Tensor | None = None) -> Moments:  # [B, N], [B, M], [N]
    """Return the moments of X, or of X less the row ``mean``, and Y.

    One pass over tiles of rows of 16 MiB: no B x B matrix, no copy of X.  Norms are summed in float64; the products of
    a tile are formed in the accumulation type of x, and added up in float64.
    """
    x_norm = x.new_zeros((), dtype=torch.float64)
    y_norm = torch.zeros_like(x_norm)
    d = torch.zeros_like(x_norm)
    product = x.new_zeros((x.shape[1], y.shape[1]), dtype=torch.float64)
    for rows, tile in tiles(x, mean, y.shape[1]):
        y_tile = y[rows].to(tile.dtype)
        x_squares, y_squares = squared_norms(tile), squared_norms(y_tile)
        x_norm += x_squares.sum()
        y_norm += y_squares.sum()
        d += x_squares.dot(y_squares)
        product += tile.T @ y_tile
    return Moments(x_norm * y_norm, product.square().sum(), d)


def tiles(x: Tensor, mean: Tensor | None = None, more_columns: int = 0) -> Iterator[tuple[slice, Tensor]]:
    """Yield X, or X less the row ``mean``, in runs of rows and in the accumulation type.

    ``more_columns`` of another matrix that is read beside it count for the height of a tile.
    """
    dtype = accumulation_dtype(x.dtype)
    height = max(1, _TILE_BYTES // max(1, (x.shape[1] + more_columns) * dtype.itemsize))
    for start in range(0, x.shape[0], height):
        rows = slice(start, start + height)
        tile = x[rows].to(dtype)
        yield rows, tile if mean is None else tile - mean.to(dtype)


def squared_norms(tile: Tensor) -> Tensor:  # [R, N] -> [R]
    """Return the squared norm of every row in float64: squares of float32 values above 2^64 overflow in float32."""
    return torch.linalg.vector_norm(tile, dim=1, dtype=torch.float64).square_()
