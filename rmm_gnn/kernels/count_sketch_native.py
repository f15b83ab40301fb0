"""S^T M of the balanced CountSketch in C, for the CPU."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rmm_gnn.kernels.native import TYPES, library, pointer, takes, threads_for
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of
from rmm_gnn.permutation import grid_sides

_INDICES = (torch.int32, torch.int64)
# What a thread's column sums take: 12 bytes a column, or 16.
_SUMS_BYTES = 16
_NO_MEMORY = 1


class Sketched(NamedTuple):
    """What one pass over a matrix gives.

    Attributes:
        rows: Rows of S^T M.
        sums: Column sums of the rows of M that these add up, without signs; None where they were not asked for.
        ones: The same rows of S^T 1; None where they were not asked for.
    """

    rows: Tensor
    sums: Tensor | None
    ones: Tensor | None


def count_sketch(
    matrix: Tensor,  # [*, N]
    seed: Tensor,
    sketch_size: int,
    start: int,
    stop: int,
    *,
    rows: Tensor | None = None,  # [B]
    with_sums: bool = False,
    workspace_bytes: int = 1 << 26,
) -> Sketched:
    """Return rows [start, stop) of S^T ``matrix``, or of that of some ``rows``.

    The permutation is made and read some hundred positions at a time.  Besides the result, memory for 6 sqrt(B) numbers
    of 4 bytes is allocated, and with sums 16 bytes a column for every thread: as many threads as ``workspace_bytes``
    holds these for, or one.

    Args:
        matrix: float32, float64 or bfloat16 on the CPU, any strides.
        seed: Scalar int64 tensor.
        sketch_size: k.
        start: First bucket.
        stop: End of the buckets.
        rows: Row numbers that S is applied to, in this order, int32 or int64; all if None.
        with_sums: Whether to return sums and ones.
        workspace_bytes: Bound on what the threads allocate for sums.

    Raises:
        ValueError: If the kernels cannot read ``matrix`` or ``rows``.
        IndexError: If one of ``rows`` is none of ``matrix``.
        ImportError: If the kernels are not compiled.
        MemoryError: If there is no memory.
    """
    if not takes(matrix) or (rows is not None and (rows.dtype not in _INDICES or rows.device != matrix.device)):
        of_rows = "" if rows is None else f", rows of {rows.dtype} on {rows.device.type}"
        raise ValueError(
            f"'backend' must be one that takes {matrix.dtype} on {matrix.device.type}{of_rows} (got 'native', which is "
            "for plain float tensors on the CPU, without a gradient). Use backend='auto'."
        )
    num_rows, num_columns = count_of(matrix, rows), matrix.shape[1]
    dtype = accumulation_dtype(matrix.dtype)
    out = matrix.new_empty((stop - start, num_columns), dtype=dtype)
    sums = matrix.new_empty(num_columns, dtype=torch.float64) if with_sums else None
    ones = matrix.new_empty(stop - start, dtype=torch.float32) if with_sums else None
    selected = None if rows is None else rows.contiguous()
    threads = threads_for(num_rows * num_columns, stop - start)
    if with_sums:
        threads = max(1, min(threads, workspace_bytes // (_SUMS_BYTES * max(1, num_columns))))
    failed = library().rmm_count_sketch(
        matrix.data_ptr(),
        TYPES[matrix.dtype],
        *matrix.stride(),
        matrix.shape[0],
        pointer(selected),
        selected is not None and selected.dtype == torch.int64,
        num_rows,
        num_columns,
        *grid_sides(num_rows),
        sketch_size,
        start,
        stop,
        int(seed),
        threads,
        out.data_ptr(),
        pointer(sums),
        pointer(ones),
    )
    if failed == _NO_MEMORY:
        raise MemoryError("There is no memory for the permutation of a sketch. Use smaller batches.")
    if failed:
        raise IndexError(f"'rows' must be rows of the matrix (one is not in [0, {matrix.shape[0]})). Correct them.")
    return Sketched(out, None if sums is None else sums.to(dtype), None if ones is None else ones.to(dtype))
