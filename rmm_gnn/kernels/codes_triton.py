"""Stochastic rounding to a few bits and back: the codes, offsets and steps of ``StochasticCodec``, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmm_gnn.kernels.hashing_triton import hash_words, stream_key
from rmm_gnn.kernels.launching_triton import check_device, is_interpreted, on_device, tile_entries
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rounding_triton import offset_and_step, random_level, uniform
from rmm_gnn.seeding import Stream

_ROUNDING = tl.constexpr(int(Stream.ROUNDING))
_ROUNDING_COLUMNS = tl.constexpr(int(Stream.ROUNDING_COLUMNS))
_MAX_COLUMNS = 256


@triton.jit
def _values(
    block,  # [R, N]
    mean,  # [N] or unused
    inv_std,  # [N] or unused
    rows,
    columns,
    within,
    inside,
    row_stride,
    column_stride,
    NORMALIZES: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Entries of ``block``, 0 outside; (entry - mean) inv_std where columns are normalised, no matter what outside."""
    entries = block + rows[:, None] * row_stride + columns[None, :].to(tl.int64) * column_stride
    tile = tl.load(entries, mask=inside, other=0.0).to(ACCUMULATE)
    if NORMALIZES:
        tile -= tl.load(mean + columns, mask=within, other=0.0).to(ACCUMULATE)[None, :]
        tile *= tl.load(inv_std + columns, mask=within, other=0.0).to(ACCUMULATE)[None, :]
    return tile


@triton.jit
def _choose_scales(
    block,  # [R, N]
    mean,  # [N] or unused
    inv_std,  # [N] or unused
    scales,  # [R, 2 groups]
    num_rows,
    num_columns,
    group_size,
    groups,
    row_stride,
    column_stride,
    NORMALIZES: tl.constexpr,
    LEVELS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    BF16: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    first, last = group * group_size, tl.minimum((group + 1) * group_size, num_columns)
    low = tl.full([ROWS], float("inf"), ACCUMULATE)
    high = tl.full([ROWS], float("-inf"), ACCUMULATE)
    odd = tl.zeros([ROWS], tl.int32)
    for column in range(first, last, COLUMNS):
        columns = column + tl.arange(0, COLUMNS)
        inside = (rows < num_rows)[:, None] & (columns < last)[None, :]
        tile = _values(
            block,
            mean,
            inv_std,
            rows,
            columns,
            columns < last,
            inside,
            row_stride,
            column_stride,
            NORMALIZES,
            ACCUMULATE,
        )
        low = tl.minimum(low, tl.min(tl.where(inside, tile, float("inf")), 1))
        high = tl.maximum(high, tl.max(tl.where(inside, tile, float("-inf")), 1))
        odd = tl.maximum(odd, tl.max((tile - tile != 0).to(tl.int32), 1))  # inf or nan
    offset, step = offset_and_step(low, high, odd > 0, LEVELS, ACCUMULATE, BF16)
    places = scales + rows * (2 * groups) + group
    tl.store(places, offset.to(scales.dtype.element_ty), mask=rows < num_rows)
    tl.store(places + groups, step.to(scales.dtype.element_ty), mask=rows < num_rows)


@triton.jit
def _pack(
    block,  # [R, N]
    mean,  # [N] or unused
    inv_std,  # [N] or unused
    codes,  # [R, width]
    scales,  # [R, 2 groups]
    seed,
    start,
    num_rows,
    num_columns,
    width,
    group_size,
    groups,
    row_stride,
    column_stride,
    NORMALIZES: tl.constexpr,
    BITS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    key = tl.load(seed)
    low, high = stream_key(key, _ROUNDING)
    column_low, column_high = stream_key(key, _ROUNDING_COLUMNS)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    octets = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    row_noise = uniform(hash_words(start + rows, low, high)).to(ACCUMULATE)
    packed = tl.zeros([ROWS, COLUMNS], tl.uint8)
    for plane in tl.static_range(8 // BITS):
        columns = plane * width + octets
        within = (octets < width) & (columns < num_columns)
        inside = (rows < num_rows)[:, None] & within[None, :]
        tile = _values(
            block, mean, inv_std, rows, columns, within, inside, row_stride, column_stride, NORMALIZES, ACCUMULATE
        )
        places = scales + rows[:, None] * (2 * groups) + (columns // group_size)[None, :]
        offset = tl.load(places, mask=inside, other=0.0).to(ACCUMULATE)
        step = tl.load(places + groups, mask=inside, other=1.0).to(ACCUMULATE)
        noise = row_noise[:, None] + uniform(hash_words(columns, column_low, column_high)).to(ACCUMULATE)[None, :]
        level = random_level(tile, offset, step, noise, BITS)
        packed |= tl.where(inside, level, 0).to(tl.uint8) << (BITS * plane)
    tl.store(
        codes + rows[:, None] * width + octets[None, :],
        packed,
        mask=(rows < num_rows)[:, None] & (octets < width)[None, :],
    )


@triton.jit
def _unpack(
    codes,  # [R, width]
    scales,  # [R, 2 groups]
    out,  # [R, N]
    num_rows,
    num_columns,
    width,
    group_size,
    groups,
    BITS: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    octets = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = (rows < num_rows)[:, None] & (octets < width)[None, :]
    packed = tl.load(codes + rows[:, None] * width + octets[None, :], mask=within, other=0)
    for plane in tl.static_range(8 // BITS):
        columns = plane * width + octets
        inside = within & (columns < num_columns)[None, :]
        level = ((packed >> (BITS * plane)) & (2**BITS - 1)).to(ACCUMULATE)
        places = scales + rows[:, None] * (2 * groups) + (columns // group_size)[None, :]
        offset = tl.load(places, mask=inside, other=0.0).to(ACCUMULATE)
        step = tl.load(places + groups, mask=inside, other=0.0).to(ACCUMULATE)
        values = level * step + offset
        tl.store(out + rows[:, None] * num_columns + columns[None, :], values.to(out.dtype.element_ty), mask=inside)


# Products and sums are rounded one by one, as plain torch rounds them.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}


def encode(
    block: Tensor,  # [R, N]
    codes: Tensor,  # [R, packed_width(N, bits)] uint8
    scales: Tensor,  # [R, 2 ceil(N / group_size)]
    seed: Tensor,
    start: int,
    *,
    bits: int,
    group_size: int | None,
    mean: Tensor | None = None,  # [N]
    inv_std: Tensor | None = None,  # [N]
) -> None:
    """Write the codes of ``block``, rows [start, start + R) of a matrix, and offsets and steps beside them.

    Given ``mean`` and ``inv_std``, what is coded is (block - mean) inv_std, which exists in registers only.

    Raises:
        ValueError: If ``block`` is not on a GPU, unless kernels are interpreted.
    """
    check_device(_pack, block)
    (num_rows, num_columns), width = block.shape, codes.shape[1]
    if block.numel() == 0:
        return
    group_size = num_columns if group_size is None else min(group_size, num_columns)
    groups = scales.shape[1] // 2
    accumulate = tl.float64 if accumulation_dtype(block.dtype) == torch.float64 else tl.float32
    normalizes = mean is not None and inv_std is not None
    operands = [block, *(tensor.contiguous() if tensor is not None else block for tensor in (mean, inv_std))]
    rows, columns = _tile(num_rows, group_size)
    with on_device(block):
        _choose_scales[(triton.cdiv(num_rows, rows), groups)](
            *operands,
            scales,
            num_rows,
            num_columns,
            group_size,
            groups,
            *block.stride(),
            NORMALIZES=normalizes,
            LEVELS=2**bits - 1,
            ACCUMULATE=accumulate,
            BF16=scales.dtype == torch.bfloat16,
            ROWS=rows,
            COLUMNS=columns,
            **OPTIONS,
        )
    rows, columns = _tile(num_rows, width)
    with on_device(block):
        _pack[(triton.cdiv(num_rows, rows), triton.cdiv(width, columns))](
            *operands,
            codes,
            scales,
            seed,
            start,
            num_rows,
            num_columns,
            width,
            group_size,
            groups,
            *block.stride(),
            NORMALIZES=normalizes,
            BITS=bits,
            ACCUMULATE=accumulate,
            ROWS=rows,
            COLUMNS=columns,
            **OPTIONS,
        )


def decode(
    codes: Tensor,  # [R, packed_width(N, bits)] uint8
    scales: Tensor,  # [R, 2 ceil(N / group_size)]
    num_columns: int,
    dtype: torch.dtype,
    *,
    bits: int,
    group_size: int | None,
) -> Tensor:  # [R, N]
    """Read what ``encode`` wrote back as ``dtype``.

    Raises:
        ValueError: If ``codes`` are not on a GPU, unless kernels are interpreted.
    """
    check_device(_unpack, codes)
    codes, scales = codes.contiguous(), scales.contiguous()
    num_rows, width = codes.shape
    out = torch.empty(num_rows, num_columns, dtype=dtype, device=codes.device)
    if out.numel() == 0:
        return out
    rows, columns = _tile(num_rows, width)
    with on_device(codes):
        _unpack[(triton.cdiv(num_rows, rows), triton.cdiv(width, columns))](
            codes,
            scales,
            out,
            num_rows,
            num_columns,
            width,
            num_columns if group_size is None else min(group_size, num_columns),
            scales.shape[1] // 2,
            BITS=bits,
            ACCUMULATE=tl.float64 if accumulation_dtype(dtype) == torch.float64 else tl.float32,
            ROWS=rows,
            COLUMNS=columns,
            **OPTIONS,
        )
    return out


def _tile(num_rows: int, width: int) -> tuple[int, int]:
    columns = min(_MAX_COLUMNS, triton.next_power_of_2(width))
    rows = max(1, tile_entries(_pack) // columns)
    # Where kernels are interpreted, small matrices would be filled up to the size of a tile.
    return min(rows, triton.next_power_of_2(num_rows)) if is_interpreted(_pack) else rows, columns
