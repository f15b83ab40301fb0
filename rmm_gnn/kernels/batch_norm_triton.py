"""Batch normalisation of [N, C] that keeps codes of its normalised input, which exists in registers only."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmm_gnn.kernels import codes_triton
from rmm_gnn.kernels.launching_triton import check_device, is_interpreted, on_device, tile_entries
from rmm_gnn.kernels.reference import accumulation_dtype

_MAX_COLUMNS = 128
# Partial sums of a column: enough programs to fill a GPU, few enough to be added in no time.
_MAX_PARTS = 256


@triton.jit
def _normalized(
    codes,  # [N, width]
    scales,  # [N, 2 groups]
    rows,
    columns,
    num_rows,
    num_columns,
    width,
    group_size,
    groups,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
):
    """Read entries of the normalised input back; 0 outside."""
    within = rows < num_rows
    inside = within[:, None] & (columns < num_columns)[None, :]
    plane = columns // width
    octets = tl.load(codes + rows[:, None] * width + (columns - plane * width)[None, :], mask=inside, other=0)
    level = ((octets.to(tl.int32) >> (BITS * plane)[None, :]) & (2**BITS - 1)).to(ACCUMULATE)
    if GROUPED:
        places = scales + rows[:, None] * (2 * groups) + (columns // group_size)[None, :]
        offset = tl.load(places, mask=inside, other=0.0).to(ACCUMULATE)
        return level * tl.load(places + groups, mask=inside, other=0.0).to(ACCUMULATE) + offset
    offset = tl.load(scales + 2 * rows, mask=within, other=0.0).to(ACCUMULATE)
    step = tl.load(scales + 2 * rows + 1, mask=within, other=0.0).to(ACCUMULATE)
    return level * step[:, None] + offset[:, None]


@triton.jit
def _reduce(
    grad_output,  # [N, C]
    codes,  # [N, width]
    scales,  # [N, 2 groups]
    parts,  # [2, programs, C]
    num_rows,
    num_columns,
    width,
    group_size,
    groups,
    row_stride,
    column_stride,
    height,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    part = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < num_columns
    sums = tl.zeros([ROWS, COLUMNS], ACCUMULATE)
    products = tl.zeros([ROWS, COLUMNS], ACCUMULATE)
    for start in range(0, height, ROWS):
        rows = part * height + start + tl.arange(0, ROWS)
        inside = (rows < num_rows)[:, None] & within[None, :]
        entries = grad_output + rows[:, None] * row_stride + columns[None, :].to(tl.int64) * column_stride
        grad = tl.load(entries, mask=inside, other=0.0).to(ACCUMULATE)
        normalized = _normalized(
            codes, scales, rows, columns, num_rows, num_columns, width, group_size, groups, BITS, GROUPED, ACCUMULATE
        )
        sums += grad
        products += normalized * grad  # 0 in rows outside
    places = parts + part * num_columns + columns
    tl.store(places, tl.sum(sums, 0), mask=within)
    tl.store(places + tl.num_programs(0).to(tl.int64) * num_columns, tl.sum(products, 0), mask=within)


@triton.jit
def _grad_input(
    grad_output,  # [N, C]
    codes,  # [N, width]
    scales,  # [N, 2 groups]
    scale,  # [C]
    mean_grad,  # [C]
    mean_product,  # [C]
    grad_x,  # [N, C]
    num_rows,
    num_columns,
    width,
    group_size,
    groups,
    row_stride,
    column_stride,
    out_row_stride,
    out_column_stride,
    BITS: tl.constexpr,
    GROUPED: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    within = columns < num_columns
    inside = (rows < num_rows)[:, None] & within[None, :]
    entries = grad_output + rows[:, None] * row_stride + columns[None, :].to(tl.int64) * column_stride
    grad = tl.load(entries, mask=inside, other=0.0).to(ACCUMULATE)
    normalized = _normalized(
        codes, scales, rows, columns, num_rows, num_columns, width, group_size, groups, BITS, GROUPED, ACCUMULATE
    )
    factor = tl.load(scale + columns, mask=within, other=0.0).to(ACCUMULATE)
    mean = tl.load(mean_grad + columns, mask=within, other=0.0).to(ACCUMULATE)
    product = tl.load(mean_product + columns, mask=within, other=0.0).to(ACCUMULATE)
    result = (grad - (mean[None, :] + normalized * product[None, :])) * factor[None, :]
    places = grad_x + rows[:, None] * out_row_stride + columns[None, :].to(tl.int64) * out_column_stride
    tl.store(places, result.to(grad_x.dtype.element_ty), mask=inside)


def encode_normalized(
    x: Tensor,  # [R, C]
    mean: Tensor,  # [C]
    inv_std: Tensor,  # [C]
    codes: Tensor,  # [R, packed_width(C, bits)] uint8
    scales: Tensor,  # [R, 2 ceil(C / group_size)]
    seed: Tensor,
    start: int,
    *,
    bits: int,
    group_size: int | None,
) -> None:
    """Write the codes of (x - mean) inv_std, rows [start, start + R), and offsets and steps beside them.

    They are those of ``StochasticCodec.encode``, byte for byte; x is read twice.

    Raises:
        ValueError: If ``x`` is not on a GPU, unless kernels are interpreted.
    """
    codes_triton.encode(x, codes, scales, seed, start, bits=bits, group_size=group_size, mean=mean, inv_std=inv_std)


def reduce(
    grad_output: Tensor,  # [N, C]
    codes: Tensor,  # [N, packed_width(C, bits)] uint8
    scales: Tensor,  # [N, 2 ceil(C / group_size)]
    *,
    bits: int,
    group_size: int | None,
) -> tuple[Tensor, Tensor]:  # [C], [C]
    """Sum g, and g times the normalised input as read back, over the rows, in the accumulation type.

    Each program adds up a run of rows, and their sums are added next: the result is the same every time.  Beside it,
    memory for 512 numbers a column is allocated at most.

    Raises:
        ValueError: If ``grad_output`` is not on a GPU, unless kernels are interpreted.
    """
    check_device(_reduce, grad_output)
    codes, scales = codes.contiguous(), scales.contiguous()
    num_rows, num_columns = grad_output.shape
    dtype = accumulation_dtype(grad_output.dtype)
    if grad_output.numel() == 0:
        return grad_output.new_zeros(num_columns, dtype=dtype), grad_output.new_zeros(num_columns, dtype=dtype)
    rows, columns = _tile(_reduce, num_rows, num_columns)
    height = triton.cdiv(triton.cdiv(num_rows, _MAX_PARTS), rows) * rows
    programs = triton.cdiv(num_rows, height)
    parts = grad_output.new_empty(2, programs, num_columns, dtype=dtype)
    with on_device(grad_output):
        _reduce[(programs, triton.cdiv(num_columns, columns))](
            grad_output,
            codes,
            scales,
            parts,
            *_shape(grad_output, codes, scales, group_size),
            *grad_output.stride(),
            height,
            **_options(dtype, bits, scales, rows, columns),
        )
    sums, products = parts.sum(1)
    return sums, products


def grad_input(
    grad_output: Tensor,  # [N, C]
    codes: Tensor,  # [N, packed_width(C, bits)] uint8
    scales: Tensor,  # [N, 2 ceil(C / group_size)]
    scale: Tensor,  # [C]
    mean_grad: Tensor,  # [C]
    mean_product: Tensor,  # [C]
    *,
    bits: int,
    group_size: int | None,
) -> Tensor:  # [N, C]
    r"""Return :math:`(g - \bar g - \hat x \, \overline{g \hat x})` scale, as ``autograd.batch_norm`` has it.

    Args:
        grad_output: g, any strides.
        codes: Those of the normalised input.
        scales: Its offsets and steps.
        scale: Weight over standard deviation of each column.
        mean_grad: Mean of g over the rows.
        mean_product: Mean of g times the normalised input.
        bits: Bits of a code.
        group_size: Columns that share an offset and a step; all if None.

    Returns:
        The gradient of x, in the type and memory format of ``grad_output``.

    Raises:
        ValueError: If ``grad_output`` is not on a GPU, unless kernels are interpreted.
    """
    check_device(_grad_input, grad_output)
    codes, scales = codes.contiguous(), scales.contiguous()
    grad_x = torch.empty_like(grad_output)
    if grad_output.numel() == 0:
        return grad_x
    num_rows, num_columns = grad_output.shape
    rows, columns = _tile(_grad_input, num_rows, num_columns)
    with on_device(grad_output):
        _grad_input[(triton.cdiv(num_rows, rows), triton.cdiv(num_columns, columns))](
            grad_output,
            codes,
            scales,
            *(values.contiguous() for values in (scale, mean_grad, mean_product)),
            grad_x,
            *_shape(grad_output, codes, scales, group_size),
            *grad_output.stride(),
            *grad_x.stride(),
            **_options(accumulation_dtype(grad_output.dtype), bits, scales, rows, columns),
        )
    return grad_x


def _shape(grad_output: Tensor, codes: Tensor, scales: Tensor, group_size: int | None) -> tuple[int, ...]:
    num_rows, num_columns = grad_output.shape
    size = num_columns if group_size is None else min(group_size, num_columns)
    return num_rows, num_columns, codes.shape[1], size, scales.shape[1] // 2


def _options(dtype: torch.dtype, bits: int, scales: Tensor, rows: int, columns: int) -> dict[str, Any]:
    return {
        "BITS": bits,
        "GROUPED": scales.shape[1] > 2,
        "ACCUMULATE": tl.float64 if dtype == torch.float64 else tl.float32,
        "ROWS": rows,
        "COLUMNS": columns,
        **codes_triton.OPTIONS,
    }


def _tile(kernel: Any, num_rows: int, num_columns: int) -> tuple[int, int]:
    columns = min(_MAX_COLUMNS, triton.next_power_of_2(num_columns))
    rows = tile_entries(kernel) // columns
    # Where kernels are interpreted, small matrices would be filled up to the size of a tile.
    return min(rows, triton.next_power_of_2(num_rows)) if is_interpreted(kernel) else rows, columns
