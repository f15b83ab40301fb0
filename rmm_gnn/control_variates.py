"""Centring: sketch X less its column means, and add their exact rank-one term in backward."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of, tile

# On CPU, tiles that stay in the cache are summed in half of the time.
_CPU_TILE_BYTES = 1 << 20


def column_sums(matrix: Tensor, workspace_bytes: int, rows: Tensor | None = None) -> Tensor:  # [B, N] -> [N]
    """Return the sum of all rows, or of ``rows``, in the accumulation type, without a copy of them all."""
    dtype = accumulation_dtype(matrix.dtype)
    if rows is not None:
        total = matrix.new_zeros(matrix.shape[1], dtype=dtype)
        for start, stop in _gathered_tiles(matrix, rows, workspace_bytes):
            total += tile(matrix, rows, start, stop).sum(0, dtype=dtype)
        return total
    if matrix.dtype == dtype or matrix.is_cuda:
        return matrix.sum(0, dtype=dtype)
    # On CPU torch would convert all of a low-precision matrix before it adds.
    total = matrix.new_zeros(matrix.shape[1], dtype=dtype)
    height = max(1, workspace_bytes // max(1, matrix.shape[1] * dtype.itemsize))
    for start in range(0, matrix.shape[0], height):
        total += matrix[start : start + height].to(dtype).sum(0)
    return total


def column_means(matrix: Tensor, workspace_bytes: int, rows: Tensor | None = None) -> Tensor:  # [B, N] -> [N]
    """Return the mean of all rows, or of ``rows``, in the accumulation type."""
    return column_sums(matrix, workspace_bytes, rows).div_(count_of(matrix, rows))


def rank_one_term(grad_output_sums: Tensor, mean: Tensor) -> Tensor:  # [M], [N] -> [M, N]
    r"""Return what centring took away from the weight gradient, exactly.

    .. math::
        Y^T X = Y^T (X - 1 \bar x^T) + (Y^T 1) \bar x^T

    Subtracting the mean from X alone is enough; Y^T 1 is the bias gradient.
    """
    return torch.outer(grad_output_sums, mean)


def nonfinite_marks(matrix: Tensor, workspace_bytes: int, rows: Tensor | None = None) -> Tensor:  # [B, N] -> [N]
    """Return 0 for every column of finite numbers and nan for one with an inf or nan anywhere, or in ``rows``."""
    dtype = accumulation_dtype(matrix.dtype)
    if rows is None:
        return _marks(matrix).to(dtype)
    total = matrix.new_zeros(matrix.shape[1], dtype=dtype)
    for start, stop in _gathered_tiles(matrix, rows, workspace_bytes):
        total += _marks(tile(matrix, rows, start, stop))
    return total


def _marks(matrix: Tensor) -> Tensor:
    low, high = torch.aminmax(matrix, dim=0)
    return low.mul_(0.0).add_(high.mul_(0.0))


def _gathered_tiles(matrix: Tensor, rows: Tensor, workspace_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut the positions of ``rows`` so that a tile of them, and what it is converted to, fits."""
    row_bytes = matrix.shape[1] * (matrix.element_size() + accumulation_dtype(matrix.dtype).itemsize)
    limit = workspace_bytes if matrix.is_cuda else min(workspace_bytes, _CPU_TILE_BYTES)
    height = max(1, limit // max(1, row_bytes))
    for start in range(0, rows.shape[0], height):
        yield start, min(start + height, rows.shape[0])
