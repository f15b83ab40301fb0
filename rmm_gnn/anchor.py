"""The anchor control variate: sketch X less its linear fit on an x_0 that is kept anyway, and add the fit exactly.

With X, X_0 [B, N] and any A, m that do not depend on S,

.. math::
    Y^T X = Y^T (X - X_0 A - 1 m^T) + (Y^T X_0) A + (Y^T 1) m^T ,

so that only the first term has to be estimated, and the estimate of the whole is unbiased whatever A is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rmm_gnn.codecs import get_codec, row_tiles
from rmm_gnn.control_variates import column_means
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.sketches.moments import tiles

# Rows that the fit reads for each of its N coefficients a column.  Fitted on so many, a residual is at most about 1/32
# larger than need be; the products of the fit stay small beside those of the layer, as those of all rows would not.
ROWS_PER_COEFFICIENT = 32
# Added to the diagonal of the correlations of x_0, which rounding makes uncertain by about 1e-6.
_RIDGE = 1e-5
_TILE_BYTES = 1 << 24


class Anchor(NamedTuple):
    """What is subtracted from X: X_0 A + 1 m^T.

    Attributes:
        x_0: X_0 [B, N].
        coefficients: A [N, N] in the accumulation type.
        mean: m [N] in the accumulation type, so that the columns of the rest have mean 0; None without centring.
    """

    x_0: Tensor
    coefficients: Tensor
    mean: Tensor | None


def fit_anchor(x: Tensor, x_0: Tensor, *, center: bool, workspace_bytes: int) -> Anchor:  # [B, N], [B, N]
    r"""Fit X by X_0 A + 1 m^T, or by X_0 A alone without ``center``.

    .. math::
        A = D^{-1/2} (D^{-1/2} G D^{-1/2} + \lambda I)^{-1} D^{-1/2} C, \quad G = \sum_i \tilde x_{0i} \tilde x_{0i}^T,
        \quad C = \sum_i \tilde x_{0i} \tilde x_i^T, \quad D = \mathrm{diag}(G), \quad m = \bar x - A^T \bar x_0

    over every so manieth row, at least ``ROWS_PER_COEFFICIENT`` N of them (all where there are fewer), each less the
    column means of all rows.  The ridge is for columns of x_0 that repeat others.  Those whose spread is below
    sqrt(eps) of their size are left out, as constant ones are: what is fitted on them would be as large as the inverse
    of their spread, and lost again in the rounding of the sum.  Sums are formed in the accumulation type, the N x N
    system is solved in float64; where it cannot be, A is 0.

    More rows would gain little: on a trained GCN2 (8 x 64, DBLP, epoch 20, rate 0.1) all 17,716 rows leave 0.66 of the
    noise of centring alone, these 2,214 leave 0.68, and half of them 0.70 (mean over the layers); without any linear
    relation, these add 3 %.

    Nothing here is random: the same X and X_0 give the same A.  Besides the workspace, a few N x N matrices are there.
    """
    dtype, columns = accumulation_dtype(x.dtype), x_0.shape[1]
    mean = mean_0 = None
    if center:
        mean, mean_0 = column_means(x, workspace_bytes), column_means(x_0, workspace_bytes)
    step = max(1, x.shape[0] // (ROWS_PER_COEFFICIENT * columns))
    rows, rows_0 = x[::step], x_0[::step]
    gram = x.new_zeros(columns, columns, dtype=dtype)
    cross = x.new_zeros(columns, x.shape[1], dtype=dtype)
    # Two copies of a tile of each matrix at most: converted, and less its mean.
    width = columns + x.shape[1]
    for start, stop in row_tiles(rows.shape[0], width, workspace_bytes // 2, dtype.itemsize):
        tile, tile_0 = rows[start:stop].to(dtype), rows_0[start:stop].to(dtype)
        if mean is not None and mean_0 is not None:
            tile, tile_0 = tile - mean, tile_0 - mean_0
        gram.addmm_(tile_0.T, tile_0)
        cross.addmm_(tile_0.T, tile)
    # Spread that rounding alone may have made: a column of one number has some after its mean was taken away.
    noise = gram.diagonal() if mean_0 is None else gram.diagonal() + rows_0.shape[0] * mean_0.to(dtype).square()
    noise = noise.double() * torch.finfo(dtype).eps
    # The solver's are column by column.
    coefficients = _solve(gram.double(), cross.double(), noise).to(dtype).contiguous()
    if mean is not None and mean_0 is not None:
        mean = mean - mean_0.to(dtype) @ coefficients
    return Anchor(x_0, coefficients, mean)


def _solve(gram: Tensor, cross: Tensor, noise: Tensor) -> Tensor:
    scale = gram.diagonal().rsqrt()
    usable = scale.isfinite() & (gram.diagonal() > noise)
    scale = torch.where(usable, scale, torch.zeros_like(scale)).unsqueeze(1)
    system = gram * scale * scale.T
    system.diagonal().add_(_RIDGE)
    factor, failed = torch.linalg.cholesky_ex(system)
    solution = torch.cholesky_solve(cross * scale, factor).mul_(scale)
    return torch.where(failed == 0, solution, torch.zeros_like(solution))


def residual_tiles(x: Tensor, anchor: Anchor) -> Iterator[tuple[slice, Tensor]]:
    """Yield X - X_0 A - 1 m^T in runs of rows of at most 16 MiB, in the accumulation type."""
    dtype = anchor.coefficients.dtype
    for start, stop in row_tiles(x.shape[0], x.shape[1], _TILE_BYTES, dtype.itemsize):
        rows = slice(start, stop)
        tile = torch.addmm(x[rows].to(dtype), anchor.x_0[rows].to(dtype), anchor.coefficients, alpha=-1.0)
        yield rows, tile if anchor.mean is None else tile.sub_(anchor.mean)


def residual(x: Tensor, anchor: Anchor) -> Tensor:  # [B, N]
    """Return X - X_0 A - 1 m^T whole, in the accumulation type: for measurements, layers only sketch it."""
    out = x.new_empty(x.shape, dtype=anchor.coefficients.dtype)
    for rows, tile in residual_tiles(x, anchor):
        out[rows] = tile
    return out


def code_noise(x_0: Tensor, coefficients: Tensor, codec: str) -> Tensor:  # [B, N], [N, N] -> [B]
    """Return for each row E|(read back - x_0i) A|^2, float64, where x_0 is read back from a code that rounds at random.

    The rounding of any two entries is independent, so it is the entries' variance times the squared norms of A's rows.
    """
    weights = coefficients.double().square().sum(1)
    variance = get_codec(codec).variance
    return torch.cat([variance(tile).double() @ weights for _, tile in tiles(x_0)])
