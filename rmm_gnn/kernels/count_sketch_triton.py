"""S^T M of the balanced CountSketch in one pass over M, with its column sums; no permutation is stored."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmm_gnn.kernels.hashing_triton import permuted, random_signs, round_keys, stream_key
from rmm_gnn.kernels.launching_triton import check_device, index_dtype, on_device, tile_entries
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of
from rmm_gnn.permutation import grid_sides
from rmm_gnn.seeding import Stream

_SIGNS = tl.constexpr(int(Stream.SIGNS))
_MAX_COLUMNS = 128


@triton.jit
def bucket_sums(
    matrix,  # [*, N]
    selected,  # [B] or unused
    seed,
    buckets,
    columns,
    num_rows,
    num_columns,
    sketch_size,
    largest,
    side_a,
    side_b,
    stop,
    row_stride,
    column_stride,
    INDEX: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SELECTS: tl.constexpr,
    SUMS: tl.constexpr,
    ONES: tl.constexpr,
    BUCKETS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum some columns of the rows in each bucket with their signs and, over all buckets, without; and the signs."""
    key = tl.load(seed)
    low, high = stream_key(key, _SIGNS)
    keys = round_keys(key)
    begin = buckets * num_rows // sketch_size
    end = tl.where(buckets < stop, (buckets + 1) * num_rows // sketch_size, begin)
    signed = tl.zeros([BUCKETS, COLUMNS], ACCUMULATE)
    total = tl.zeros([COLUMNS], ACCUMULATE)
    ones = tl.zeros([BUCKETS], tl.float32)
    for chunk in range(0, largest, POSITIONS):
        positions = begin[:, None] + (chunk + tl.arange(0, POSITIONS))[None, :]
        inside = tl.reshape(positions < end[:, None], [BUCKETS * POSITIONS])
        positions = tl.where(inside, tl.reshape(positions, [BUCKETS * POSITIONS]), 0).to(INDEX)
        rows = permuted(positions, tl.cast(num_rows, INDEX), side_a.to(INDEX), side_b.to(INDEX), keys).to(tl.int64)
        if SELECTS:
            rows = tl.load(selected + rows).to(tl.int64)
        entries = matrix + rows[:, None] * row_stride + columns[None, :].to(tl.int64) * column_stride
        within = columns < num_columns
        tile = tl.load(entries, mask=inside[:, None] & within[None, :], other=0.0).to(ACCUMULATE)
        if SUMS:
            total += tl.sum(tile, 0)
        signs = random_signs(positions, low, high)
        tile *= signs.to(ACCUMULATE)[:, None]
        signed += tl.sum(tl.reshape(tile, [BUCKETS, POSITIONS, COLUMNS]), 1)
        if ONES:
            ones += tl.sum(tl.reshape(tl.where(inside, signs, 0.0), [BUCKETS, POSITIONS]), 1)
    return signed, total, ones


@triton.jit
def _count_sketch(
    matrix,  # [*, N]
    selected,  # [B] or unused
    out,  # [stop - start, N]
    sums,  # [programs, N] or unused
    seed,
    num_rows,
    num_columns,
    sketch_size,
    largest,
    side_a,
    side_b,
    start,
    stop,
    row_stride,
    column_stride,
    INDEX: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    SELECTS: tl.constexpr,
    SUMS: tl.constexpr,
    BUCKETS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    buckets = start + tl.program_id(0).to(tl.int64) * BUCKETS + tl.arange(0, BUCKETS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < num_columns
    signed, total, _ = bucket_sums(
        matrix, selected, seed, buckets, columns, num_rows, num_columns, sketch_size, largest, side_a, side_b, stop,
        row_stride, column_stride, INDEX, ACCUMULATE, SELECTS, SUMS, False, BUCKETS, POSITIONS, COLUMNS,
    )  # fmt: skip
    places = (buckets - start)[:, None] * num_columns + columns[None, :]
    tl.store(out + places, signed, mask=(buckets < stop)[:, None] & within[None, :])
    if SUMS:
        tl.store(sums + tl.program_id(0).to(tl.int64) * num_columns + columns, total, mask=within)


def sketch(
    matrix: Tensor,  # [*, N]
    seed: Tensor,
    sketch_size: int,
    start: int,
    stop: int,
    *,
    rows: Tensor | None = None,  # [B]
    with_sums: bool = False,
) -> tuple[Tensor, Tensor | None]:  # [stop - start, N], [N]
    """Return rows [start, stop) of S^T ``matrix``, or of that of some ``rows``, and the sums of what they add up.

    Each program gathers the rows of a few buckets, whose numbers it computes, and writes one row for every bucket.

    Args:
        matrix: Any strides; the last dimension contiguous is fastest.
        seed: Scalar int64 tensor on the same device.
        sketch_size: k.
        start: First bucket.
        stop: End of the buckets.
        rows: Row numbers that S is applied to, in this order; all if None.
        with_sums: Whether to return the column sums over all rows of these buckets, without signs.

    Returns:
        Both in the accumulation type; None in place of sums that are not wanted.

    Raises:
        ValueError: If ``matrix`` is not on a GPU, unless kernels are interpreted.
    """
    check_device(_count_sketch, matrix)
    num_rows, num_columns = count_of(matrix, rows), matrix.shape[1]
    dtype = accumulation_dtype(matrix.dtype)
    out = matrix.new_empty((stop - start, num_columns), dtype=dtype)
    options = launch_options(_count_sketch, matrix, rows, sketch_size, start, stop)
    programs = triton.cdiv(stop - start, options["BUCKETS"])
    sums = matrix.new_empty((programs, num_columns), dtype=dtype) if with_sums else out
    if out.numel():
        with on_device(matrix):
            _count_sketch[(programs, triton.cdiv(num_columns, options["COLUMNS"]))](
                matrix,
                seed if rows is None else rows,
                out,
                sums,
                seed,
                num_rows,
                num_columns,
                sketch_size,
                -(-num_rows // sketch_size),
                *grid_sides(num_rows),
                start,
                stop,
                *matrix.stride(),
                SUMS=with_sums,
                **options,
            )
    return out, sums.sum(0) if with_sums else None


def launch_options(
    kernel: Any, matrix: Tensor, rows: Tensor | None, sketch_size: int, start: int, stop: int
) -> dict[str, Any]:
    """Return what this kernel and the one that encodes are compiled for."""
    num_rows = count_of(matrix, rows)
    columns = min(_MAX_COLUMNS, triton.next_power_of_2(max(1, matrix.shape[1])))
    entries = tile_entries(kernel)
    positions = min(entries // columns, triton.next_power_of_2(-(-num_rows // sketch_size)))
    side_a, side_b = grid_sides(num_rows)
    return {
        "INDEX": index_dtype(side_a * side_b),
        "ACCUMULATE": tl.float64 if accumulation_dtype(matrix.dtype) == torch.float64 else tl.float32,
        "SELECTS": rows is not None,
        "BUCKETS": min(entries // (columns * positions), triton.next_power_of_2(stop - start)),
        "POSITIONS": positions,
        "COLUMNS": columns,
    }
