"""Centring: sketch X less its column means, and add their exact rank-one term in backward."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype


def column_sums(matrix: Tensor, workspace_bytes: int) -> Tensor:  # [B, N] -> [N]
    """Return the sum of the rows in the accumulation type, without a converted copy of the whole matrix."""
    dtype = accumulation_dtype(matrix.dtype)
    if matrix.dtype == dtype or matrix.is_cuda:
        return matrix.sum(0, dtype=dtype)
    # On CPU torch would convert all of a low-precision matrix before it adds.
    total = matrix.new_zeros(matrix.shape[1], dtype=dtype)
    height = max(1, workspace_bytes // max(1, matrix.shape[1] * dtype.itemsize))
    for start in range(0, matrix.shape[0], height):
        total += matrix[start : start + height].to(dtype).sum(0)
    return total


def column_means(matrix: Tensor, workspace_bytes: int) -> Tensor:  # [B, N] -> [N]
    """Return the mean of the rows in the accumulation type."""
    return column_sums(matrix, workspace_bytes).div_(matrix.shape[0])


def rank_one_term(grad_output_sums: Tensor, mean: Tensor) -> Tensor:  # [M], [N] -> [M, N]
    r"""Return what centring took away from the weight gradient, exactly.

    .. math::
        Y^T X = Y^T (X - 1 \bar x^T) + (Y^T 1) \bar x^T

    Subtracting the mean from X alone is enough; Y^T 1 is the bias gradient.
    """
    return torch.outer(grad_output_sums, mean)


def nonfinite_marks(matrix: Tensor) -> Tensor:  # [B, N] -> [N]
    """Return 0 for every column of finite numbers and nan for a column with an inf or nan anywhere."""
    low, high = torch.aminmax(matrix, dim=0)
    return low.mul_(0.0).add_(high.mul_(0.0)).to(accumulation_dtype(matrix.dtype))
