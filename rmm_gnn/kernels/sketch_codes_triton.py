"""S^T M of the balanced CountSketch and its codes in one pass over M: the sketch never leaves the registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmm_gnn.kernels.codes_triton import OPTIONS
from rmm_gnn.kernels.count_sketch_triton import bucket_sums, launch_options
from rmm_gnn.kernels.hashing_triton import hash_words, stream_key
from rmm_gnn.kernels.launching_triton import check_device, on_device, tile_entries
from rmm_gnn.kernels.rounding_triton import offset_and_step, random_level, uniform
from rmm_gnn.kernels.rows import count_of
from rmm_gnn.permutation import grid_sides
from rmm_gnn.seeding import Stream

_ROUNDING = tl.constexpr(int(Stream.ROUNDING))
_ROUNDING_COLUMNS = tl.constexpr(int(Stream.ROUNDING_COLUMNS))
# What is held in registers of a row.
MAX_COLUMNS = 1024


@triton.jit
def _sketch_and_encode(
    matrix,  # [*, N]
    selected,  # [B] or unused
    mean,  # [N] or unused
    codes,  # [stop - start, width]
    scales,  # [stop - start, 2]
    seed,
    num_rows,
    num_columns,
    width,
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
    CENTERS: tl.constexpr,
    BITS: tl.constexpr,
    BF16: tl.constexpr,
    BUCKETS: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    OCTETS: tl.constexpr,
):
    buckets = start + tl.program_id(0).to(tl.int64) * BUCKETS + tl.arange(0, BUCKETS)
    blocks = tl.zeros([BUCKETS, BLOCKS, COLUMNS], ACCUMULATE)
    for block in range(BLOCKS):
        columns = block * COLUMNS + tl.arange(0, COLUMNS)
        signed, _, ones = bucket_sums(
            matrix, selected, seed, buckets, columns, num_rows, num_columns, sketch_size, largest, side_a, side_b, stop,
            row_stride, column_stride, INDEX, ACCUMULATE, SELECTS, False, CENTERS, BUCKETS, POSITIONS, COLUMNS,
        )  # fmt: skip
        if CENTERS:
            means = tl.load(mean + columns, mask=columns < num_columns, other=0.0).to(ACCUMULATE)
            signed -= ones.to(ACCUMULATE)[:, None] * means[None, :]
        blocks = tl.where((tl.arange(0, BLOCKS) == block)[None, :, None], signed[:, None, :], blocks)
    values = tl.reshape(blocks, [BUCKETS, BLOCKS * COLUMNS])

    columns = tl.arange(0, BLOCKS * COLUMNS)
    within = (columns < num_columns)[None, :]
    odd = tl.max((within & (values - values != 0)).to(tl.int32), 1) > 0  # inf or nan
    lowest = tl.min(tl.where(within, values, float("inf")), 1)
    highest = tl.max(tl.where(within, values, float("-inf")), 1)
    offset, step = offset_and_step(lowest, highest, odd, 2**BITS - 1, ACCUMULATE, BF16)
    places, ours = scales + 2 * (buckets - start), buckets < stop
    tl.store(places, offset.to(scales.dtype.element_ty), mask=ours)
    tl.store(places + 1, step.to(scales.dtype.element_ty), mask=ours)

    key = tl.load(seed)
    low, high = stream_key(key, _ROUNDING)
    column_low, column_high = stream_key(key, _ROUNDING_COLUMNS)
    noise = uniform(hash_words(buckets, low, high)).to(ACCUMULATE)[:, None]
    noise += uniform(hash_words(columns, column_low, column_high)).to(ACCUMULATE)[None, :]
    level = random_level(values, offset.to(ACCUMULATE)[:, None], step.to(ACCUMULATE)[:, None], noise, BITS)
    level = tl.where(within, level, 0)
    octets = tl.arange(0, OCTETS)
    packed = tl.zeros([BUCKETS, OCTETS], tl.int32)
    for plane in tl.static_range(8 // BITS):
        places = plane * width + octets
        inside = places < num_columns
        index = tl.broadcast_to(tl.where(inside, places, 0)[None, :], [BUCKETS, OCTETS])
        packed |= tl.where(inside[None, :], tl.gather(level, index, 1), 0) << (BITS * plane)
    places = codes + (buckets - start)[:, None] * width + octets[None, :]
    tl.store(places, packed.to(tl.uint8), mask=ours[:, None] & (octets < width)[None, :])


def sketch_and_encode(
    matrix: Tensor,  # [*, N]
    seed: Tensor,
    sketch_size: int,
    start: int,
    stop: int,
    codes: Tensor,  # [stop - start, packed_width(N, bits)] uint8
    scales: Tensor,  # [stop - start, 2]
    *,
    bits: int,
    rows: Tensor | None = None,  # [B]
    mean: Tensor | None = None,  # [N]
) -> None:
    """Write the codes of rows [start, stop) of S^T (``matrix`` - 1 mean^T) as ``StochasticCodec`` has them.

    The sketch exists in registers only, one program holding all columns of a bucket.  The bytes are those of ``sketch``
    less (S^T 1) mean^T, encoded with one offset and one step a row under the same seed.

    Args:
        matrix: At most 1024 columns, any strides; the last dimension contiguous is fastest.
        seed: Scalar int64 tensor on the same device.
        sketch_size: k.
        start: First bucket.
        stop: End of the buckets.
        codes: Where codes go, contiguous.
        scales: Where offsets and steps go, contiguous.
        bits: Bits of a code.
        rows: Row numbers that S is applied to, in this order; all if None.
        mean: What is subtracted from every row; nothing if None.

    Raises:
        ValueError: If ``matrix`` is too wide, or is not on a GPU and kernels are not interpreted.
    """
    check_device(_sketch_and_encode, matrix)
    num_rows, num_columns = count_of(matrix, rows), matrix.shape[1]
    if num_columns > MAX_COLUMNS:
        raise ValueError(
            f"'matrix' must have at most {MAX_COLUMNS} columns (got {num_columns}). Sketch first, then encode."
        )
    if num_columns == 0 or start == stop:
        return
    options = launch_options(_sketch_and_encode, matrix, rows, sketch_size, start, stop)
    blocks = triton.next_power_of_2(triton.cdiv(num_columns, options["COLUMNS"]))
    # Fewer buckets than without codes: all columns of them are held at once.
    largest = max(1, tile_entries(_sketch_and_encode) // (blocks * options["COLUMNS"]))
    options["BUCKETS"] = min(options["BUCKETS"], largest)
    with on_device(matrix):
        _sketch_and_encode[(triton.cdiv(stop - start, options["BUCKETS"]),)](
            matrix,
            seed if rows is None else rows,
            seed if mean is None else mean.contiguous(),
            codes,
            scales,
            seed,
            num_rows,
            num_columns,
            codes.shape[1],
            sketch_size,
            -(-num_rows // sketch_size),
            *grid_sides(num_rows),
            start,
            stop,
            *matrix.stride(),
            CENTERS=mean is not None,
            BITS=bits,
            BF16=scales.dtype == torch.bfloat16,
            BLOCKS=blocks,
            OCTETS=triton.next_power_of_2(codes.shape[1]),
            **options,
            **OPTIONS,
        )
