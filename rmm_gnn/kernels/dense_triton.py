"""S^T M for a Gaussian, Rademacher or block-diagonal Rademacher S, whose tiles are made in registers when used."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmm_gnn.kernels.hashing_triton import hash_words, mix32, permuted, round_keys, stream_key
from rmm_gnn.kernels.launching_triton import check_device, index_dtype, is_interpreted, on_device
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of
from rmm_gnn.permutation import grid_sides
from rmm_gnn.seeding import Stream

_ENTRY_ROWS = tl.constexpr(int(Stream.ENTRY_ROWS))
_ENTRY_COLUMNS = tl.constexpr(int(Stream.ENTRY_COLUMNS))
_TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def _signs(row_words, first, low, high, ROWS: tl.constexpr, SIZE: tl.constexpr):
    """``RademacherSketch.entries`` of SIZE columns from ``first`` on, a multiple of 32: one hash gives 32 of them."""
    words = first // 32 + tl.arange(0, SIZE // 32)
    cells = mix32(row_words[:, None] ^ hash_words(words, low, high)[None, :])
    bits = (cells[:, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, :]) & 1
    return 1.0 - 2.0 * tl.reshape(bits, [ROWS, SIZE]).to(tl.float32)


@triton.jit
def _normals(row_words, first, low, high, SIZE: tl.constexpr):
    """``GaussianSketch.entries`` of SIZE columns from ``first`` on, an even number: two hashes give two of them."""
    pairs = first + 2 * tl.arange(0, SIZE // 2)
    radius_words = mix32(row_words[:, None] ^ hash_words(pairs, low, high)[None, :])
    angle_words = mix32(row_words[:, None] ^ hash_words(pairs + 1, low, high)[None, :])
    radius = tl.log((radius_words.to(tl.float32) + 0.5) * (1.0 / 4294967296.0)) * -2.0
    radius = tl.sqrt(tl.maximum(radius, 0.0))
    angle = (angle_words.to(tl.float32) + 0.5) * (1.0 / 4294967296.0) * _TWO_PI
    return tl.interleave(tl.cos(angle) * radius, tl.sin(angle) * radius)


@triton.jit
def _dense(
    matrix,  # [*, N]
    selected,  # [B] or unused
    out,  # [stop - start, N]
    seed,
    num_rows,
    num_columns,
    sketch_size,
    num_blocks,
    side_a,
    side_b,
    start,
    stop,
    first_block,
    row_stride,
    column_stride,
    INDEX: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    GAUSSIAN: tl.constexpr,
    PERMUTES: tl.constexpr,
    SELECTS: tl.constexpr,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    key = tl.load(seed)
    row_low, row_high = stream_key(key, _ENTRY_ROWS)
    column_low, column_high = stream_key(key, _ENTRY_COLUMNS)
    keys = round_keys(key)
    block = (first_block + tl.program_id(2)).to(tl.int64)
    begin, end = block * num_rows // num_blocks, (block + 1) * num_rows // num_blocks
    first, last = block * sketch_size // num_blocks, (block + 1) * sketch_size // num_blocks
    scale = 1.0 / tl.sqrt((last - first).to(tl.float32))
    # The tiles of S begin at whole words, some columns before the first that is wanted.
    column = tl.maximum(first, start) // 32 * 32 + tl.program_id(0).to(tl.int64) * SIZE
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < num_columns
    total = tl.zeros([SIZE, COLUMNS], ACCUMULATE)
    if column < tl.minimum(last, stop):
        for position in range(begin, end, ROWS):
            positions = position + tl.arange(0, ROWS)
            inside = positions < end
            rows = tl.where(inside, positions, begin)
            if PERMUTES:
                rows = permuted(rows.to(INDEX), tl.cast(num_rows, INDEX), side_a.to(INDEX), side_b.to(INDEX), keys)
            row_words = hash_words(rows, row_low, row_high)
            if GAUSSIAN:
                entries = _normals(row_words, column, column_low, column_high, SIZE)
            else:
                entries = _signs(row_words, column, column_low, column_high, ROWS, SIZE)
            rows = rows.to(tl.int64)
            if SELECTS:
                rows = tl.load(selected + rows).to(tl.int64)
            places = matrix + rows[:, None] * row_stride + columns[None, :].to(tl.int64) * column_stride
            tile = tl.load(places, mask=inside[:, None] & within[None, :], other=0.0).to(ACCUMULATE)
            # Not in TF32: its products would round x to eleven bits.
            total = tl.dot(tl.trans(entries.to(ACCUMULATE)), tile, total, input_precision="ieee", out_dtype=ACCUMULATE)
        sketch_rows = column + tl.arange(0, SIZE)
        wanted = (sketch_rows >= tl.maximum(first, start)) & (sketch_rows < tl.minimum(last, stop))
        tl.store(
            out + (sketch_rows - start)[:, None] * num_columns + columns[None, :],
            total * scale.to(ACCUMULATE),
            mask=wanted[:, None] & within[None, :],
        )


def sketch(
    matrix: Tensor,  # [*, N]
    seed: Tensor,
    sketch_size: int,
    start: int,
    stop: int,
    *,
    entries: str,
    num_blocks: int | None = None,
    rows: Tensor | None = None,  # [B]
) -> Tensor:  # [stop - start, N]
    """Return rows [start, stop) of S^T ``matrix``, or of that of some ``rows``, in the accumulation type.

    Args:
        matrix: Any strides; the last dimension contiguous is fastest.
        seed: Scalar int64 tensor on the same device.
        sketch_size: k.
        start: First row of the result.
        stop: End of the rows of the result.
        entries: Name of the family whose entries S has: "gaussian" or "rademacher".
        num_blocks: Blocks of a block-diagonal S over permuted rows; None for a dense S over the rows as they are.
        rows: Row numbers that S is applied to, in this order; all if None.

    Raises:
        ValueError: If ``matrix`` is not on a GPU, unless kernels are interpreted.
    """
    check_device(_dense, matrix)
    num_rows, num_columns = count_of(matrix, rows), matrix.shape[1]
    dtype = accumulation_dtype(matrix.dtype)
    out = matrix.new_empty((stop - start, num_columns), dtype=dtype)
    if out.numel() == 0:
        return out
    blocks = 1 if num_blocks is None else num_blocks
    first_block = ((start + 1) * blocks - 1) // sketch_size
    last_block = (stop * blocks - 1) // sketch_size + 1
    interpreted = is_interpreted(_dense)
    size, height = (256, 1024) if interpreted else (64, 32)
    columns = max(16, min(256 if interpreted else 64, triton.next_power_of_2(num_columns)))
    # A block's share of the columns of S, and what its first tile begins too early.
    widest = min(-(-sketch_size // blocks), stop - start) + 31
    side_a, side_b = grid_sides(num_rows)
    with on_device(matrix):
        _dense[(triton.cdiv(widest, size), triton.cdiv(num_columns, columns), last_block - first_block)](
            matrix,
            seed if rows is None else rows,
            out,
            seed,
            num_rows,
            num_columns,
            sketch_size,
            blocks,
            side_a,
            side_b,
            start,
            stop,
            first_block,
            *matrix.stride(),
            INDEX=index_dtype(side_a * side_b),
            ACCUMULATE=tl.float64 if dtype == torch.float64 else tl.float32,
            GAUSSIAN=entries == "gaussian",
            PERMUTES=num_blocks is not None,
            SELECTS=rows is not None,
            ROWS=height,
            SIZE=size,
            COLUMNS=columns,
        )
    return out
