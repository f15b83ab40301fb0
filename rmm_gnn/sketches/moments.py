"""The three sums that every closed-form variance is made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_TILE_ROWS = 8192


class Moments(NamedTuple):
    """float64 scalars: a = |X|^2 |Y|^2, c = |X^T Y|_F^2, d = sum_i |x_i|^2 |y_i|^2."""

    a: Tensor
    c: Tensor
    d: Tensor


def moments(x: Tensor, y: Tensor) -> Moments:  # [B, N], [B, M]
    """Return the moments of X and Y in one pass over tiles of rows; no B x B matrix and no float64 copy is made."""
    x_norm = x.new_zeros((), dtype=torch.float64)
    y_norm = torch.zeros_like(x_norm)
    d = torch.zeros_like(x_norm)
    product = x.new_zeros((x.shape[1], y.shape[1]), dtype=torch.float64)
    for start in range(0, x.shape[0], _TILE_ROWS):
        x_tile = x[start : start + _TILE_ROWS].double()
        y_tile = y[start : start + _TILE_ROWS].double()
        x_squares, y_squares = x_tile.square().sum(1), y_tile.square().sum(1)
        x_norm += x_squares.sum()
        y_norm += y_squares.sum()
        d += x_squares.dot(y_squares)
        product.addmm_(x_tile.T, y_tile)
    return Moments(x_norm * y_norm, product.square().sum(), d)
