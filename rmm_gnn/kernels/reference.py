"""Bucket sums in plain torch: the specification that every other implementation is compared with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums over rows are formed: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gathers_in_place(matrix: Tensor) -> bool:
    """Whether ``bucket_sum`` reads ``matrix`` where it lies, without a copy of the gathered rows."""
    return matrix.dtype == accumulation_dtype(matrix.dtype) and matrix.is_contiguous()


def bucket_sum(
    matrix: Tensor,  # [B, N]
    rows: Tensor,  # [P]
    signs: Tensor,  # [P]
    offsets: Tensor,  # [k]
) -> Tensor:  # [k, N]
    """Sum signed rows bucket by bucket: ``out[j] = sum over p in bucket j of signs[p] * matrix[rows[p]]``.

    Bucket j holds the positions from ``offsets[j]`` up to ``offsets[j + 1]``, the last one up to P.  Contiguous float32
    and float64 matrices are read in place; other ones are gathered into a [P, N] block of the accumulation type first.

    Args:
        matrix: Rows to add.
        rows: Row numbers in bucket order, int32 or int64.
        signs: Factor of each position, in the accumulation type of ``matrix``.
        offsets: Start of each bucket, of the type of ``rows``.

    Returns:
        The sums in the accumulation type.
    """
    if not gathers_in_place(matrix):
        matrix = matrix.index_select(0, rows).to(signs.dtype)
        rows = torch.arange(rows.numel(), dtype=rows.dtype, device=rows.device)
    return F.embedding_bag(rows, matrix, offsets, mode="sum", per_sample_weights=signs)
