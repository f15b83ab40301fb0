"""ReLU, leaky ReLU and dropout with one bit for every entry, in one pass over the tensor; no mask is stored."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rmm_gnn.kernels.hashing_triton import hash_words, mix32, stream_key
from rmm_gnn.kernels.launching_triton import check_device, index_dtype, on_device, tile_entries
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.seeding import Stream

_DROPOUT = tl.constexpr(int(Stream.DROPOUT))
_DROPOUT_LANES = tl.constexpr(int(Stream.DROPOUT_LANES))
# Those of ``autograd.bit_masks``: entries of a tile, within which bits are packed in planes, and bytes of a plane.
TILE = 1 << 18
_TILE = tl.constexpr(TILE)
_WIDTH = tl.constexpr(TILE // 8)


@triton.jit
def _part_of_tile(last_tile, last_count, last_width, OCTETS: tl.constexpr):
    """This program's tile and some bytes of its bits; the tile's entries and the bytes that hold its bits."""
    first = tl.program_id(0).to(tl.int64) * OCTETS
    tile = first // _WIDTH
    octets = (first % _WIDTH).to(tl.int32) + tl.arange(0, OCTETS)
    return tile, octets, tl.where(tile == last_tile, last_count, _TILE), tl.where(tile == last_tile, last_width, _WIDTH)


@triton.jit
def _places(tile, lanes, columns, row_stride, column_stride, STRIDED: tl.constexpr, INDEX: tl.constexpr):
    """Where entries ``lanes`` of a tile of the flattened matrix lie."""
    if not STRIDED:
        return tile * _TILE + lanes
    flat = (tile * _TILE + lanes).to(INDEX)
    row = flat // columns
    return row.to(tl.int64) * row_stride + (flat - row * columns).to(tl.int64) * column_stride


@triton.jit
def _activate(
    x,
    out,
    bits,  # [ceil(n / 8)] or unused
    seed,  # or unused
    last_tile,
    last_count,
    last_width,
    columns,
    row_stride,
    column_stride,
    out_row_stride,
    out_column_stride,
    threshold: tl.int64,
    slope: tl.float64,
    factor: tl.float64,
    before: tl.int64,  # entries of the tensor whose mask it is that precede this part of it
    RECTIFIES: tl.constexpr,
    LEAKS: tl.constexpr,
    DROPS: tl.constexpr,
    SHIFTED: tl.constexpr,
    STRIDED: tl.constexpr,
    INDEX: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OCTETS: tl.constexpr,
):
    tile, octets, count, width = _part_of_tile(last_tile, last_count, last_width, OCTETS)
    if DROPS:
        key = tl.load(seed)
        low, high = stream_key(key, _DROPOUT)
        lane_low, lane_high = stream_key(key, _DROPOUT_LANES)
        first = hash_words(tile, low, high)
    packed = tl.zeros([OCTETS], tl.uint8)
    for plane in tl.static_range(8):
        lanes = plane * width + octets
        inside = (octets < width) & (lanes < count)
        places = _places(tile, lanes, columns, row_stride, column_stride, STRIDED, INDEX)
        values = tl.load(x + places, mask=inside, other=0.0).to(ACCUMULATE)
        passes = values > 0 if LEAKS else ~(values <= 0)  # a nan passes ReLU, and not leaky ReLU, as in torch
        if LEAKS:
            values = tl.where(passes, values, values * tl.full((), slope, ACCUMULATE))
        elif RECTIFIES:
            values = tl.where(values < 0, 0.0, values)
        if DROPS:
            own, lane = first, lanes
            if SHIFTED:
                number = before + tile * _TILE + lanes
                own, lane = hash_words(number // _TILE, low, high), (number % _TILE).to(tl.int32)
            keeps = mix32(hash_words(lane, lane_low, lane_high) ^ own).to(tl.int64) >= tl.cast(threshold, tl.int64)
            passes = passes & keeps
            # A product, also with zero: nan and inf become nan, and negative numbers -0.0, as in torch.
            values *= tl.where(keeps, tl.full((), factor, ACCUMULATE), tl.full((), 0, ACCUMULATE))
        places = _places(tile, lanes, columns, out_row_stride, out_column_stride, STRIDED, INDEX)
        tl.store(out + places, values.to(out.dtype.element_ty), mask=inside)
        packed |= (passes & inside).to(tl.uint8) << plane
    if RECTIFIES:
        tl.store(bits + tile * _WIDTH + octets, packed, mask=octets < width)


@triton.jit
def _mask_grad(
    grad_output,
    bits,  # [ceil(n / 8)]
    grad_x,
    last_tile,
    last_count,
    last_width,
    columns,
    row_stride,
    column_stride,
    slope: tl.float64,
    factor: tl.float64,
    LEAKS: tl.constexpr,
    SCALES: tl.constexpr,
    STRIDED: tl.constexpr,
    INDEX: tl.constexpr,
    ACCUMULATE: tl.constexpr,
    OCTETS: tl.constexpr,
):
    tile, octets, count, width = _part_of_tile(last_tile, last_count, last_width, OCTETS)
    packed = tl.load(bits + tile * _WIDTH + octets, mask=octets < width, other=0)
    for plane in tl.static_range(8):
        lanes = plane * width + octets
        inside = (octets < width) & (lanes < count)
        places = _places(tile, lanes, columns, row_stride, column_stride, STRIDED, INDEX)
        values = tl.load(grad_output + places, mask=inside, other=0.0).to(ACCUMULATE)
        passes = ((packed >> plane) & 1) != 0
        if LEAKS:
            values = tl.where(passes, values, values * tl.full((), slope, ACCUMULATE))
        else:
            values = tl.where(passes, values, 0.0)
        if SCALES:
            values = values.to(grad_x.dtype.element_ty).to(ACCUMULATE) * tl.full((), factor, ACCUMULATE)
        tl.store(grad_x + tile * _TILE + lanes, values.to(grad_x.dtype.element_ty), mask=inside)


def relu(x: Tensor, negative_slope: float | None) -> tuple[Tensor, Tensor]:
    """ReLU, or leaky ReLU where a slope is given, and one bit for every entry: the operator ``rmm_gnn::relu``.

    Of two zeros -0.0 stays what it is, as torch has it on the CPU.

    Args:
        x: Any shape, any strides; more than two dimensions that are not contiguous are copied.
        negative_slope: What entries that are not positive are multiplied by; None for ReLU.

    Returns:
        The output, in the memory format of x, and ceil(n / 8) bytes.

    Raises:
        ValueError: If ``x`` is not on a GPU, unless kernels are interpreted.
    """
    out = torch.empty_like(x)
    matrix = _matrix(x)
    if out.dim() <= 2 or out.is_contiguous():
        return out, _run(matrix, out.view(matrix.shape), slope=negative_slope, rectifies=True)
    result = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    bits = _run(matrix, result, slope=negative_slope, rectifies=True)
    return out.copy_(result.view(out.shape)), bits


def dropout(x: Tensor, p: float, seed: Tensor, first: int = 0) -> Tensor:
    """X times 1 / (1 - p), or times 0 where the seed's mask drops an entry: the operator ``rmm_gnn::dropout``.

    Args:
        x: Any shape, any strides; more than two dimensions that are not contiguous are copied.
        p: Probability of an entry to be dropped, below 1.
        seed: Scalar int64 tensor on the same device.
        first: Number of the first entry of ``x`` in the tensor whose mask it is.

    Returns:
        The output, contiguous.

    Raises:
        ValueError: If ``x`` is not on a GPU, unless kernels are interpreted.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    matrix = _matrix(x)
    _run(matrix, out.view(matrix.shape), p=p, seed=seed, first=first)
    return out


def relu_dropout(x: Tensor, p: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Dropout of ReLU, and one bit for every entry: the operator ``rmm_gnn::relu_dropout``.

    Args:
        x: Any shape, any strides; more than two dimensions that are not contiguous are copied.
        p: Probability of an entry to be dropped, below 1.
        seed: Scalar int64 tensor on the same device.

    Returns:
        The output, contiguous, and ceil(n / 8) bytes: whether the gradient passes both.

    Raises:
        ValueError: If ``x`` is not on a GPU, unless kernels are interpreted.
    """
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    matrix = _matrix(x)
    return out, _run(matrix, out.view(matrix.shape), p=p, seed=seed, rectifies=True)


def masked_grad(grad_output: Tensor, bits: Tensor, divisor: float, slope: float) -> Tensor:
    """Their backward: the operator ``rmm_gnn::masked_grad``.

    Args:
        grad_output: Any shape, any strides; more than two dimensions that are not contiguous are copied.
        bits: What ``relu`` or ``relu_dropout`` returned.
        divisor: 1 - p, or 1 without dropout.
        slope: What an entry is multiplied by where its bit is not set; 0 where that is 0, also for inf and nan.

    Returns:
        The gradient of x, contiguous.

    Raises:
        ValueError: If ``grad_output`` is not on a GPU, unless kernels are interpreted.
    """
    check_device(_mask_grad, grad_output)
    bits = bits.contiguous()
    grad_x = torch.empty_like(grad_output, memory_format=torch.contiguous_format)
    matrix = _matrix(grad_output)
    if matrix.numel() == 0:
        return grad_x
    programs, shape, options = _launch(_mask_grad, matrix)
    with on_device(matrix):
        _mask_grad[(programs,)](
            matrix,
            bits,
            grad_x,
            *shape,
            *matrix.stride(),
            slope,
            _factor(divisor, matrix.dtype),
            LEAKS=slope != 0.0,
            SCALES=divisor != 1.0,
            **options,
        )
    return grad_x


def _run(
    matrix: Tensor,
    out: Tensor,
    *,
    slope: float | None = None,
    p: float | None = None,
    seed: Tensor | None = None,
    first: int = 0,
    rectifies: bool = False,
) -> Tensor:
    """Write ``out`` and return the bits: none without ``rectifies``."""
    check_device(_activate, matrix)
    bits = matrix.new_empty(-(-matrix.numel() // 8) if rectifies else 0, dtype=torch.uint8)
    if matrix.numel() == 0:
        return bits
    programs, shape, options = _launch(_activate, matrix)
    with on_device(matrix):
        _activate[(programs,)](
            matrix,
            out,
            bits if rectifies else matrix,
            matrix if seed is None else seed,
            *shape,
            *matrix.stride(),
            *out.stride(),
            0 if p is None else round(p * 2**32),
            0.0 if slope is None else float(slope),
            1.0 if p is None else _factor(1 - p, matrix.dtype),
            first,
            RECTIFIES=rectifies,
            LEAKS=slope is not None,
            DROPS=p is not None,
            SHIFTED=first != 0,
            **options,
        )
    return bits


def _matrix(x: Tensor) -> Tensor:
    """View ``x`` as a matrix, of one row where it is contiguous; a copy where more dimensions are not."""
    if x.dim() > 2 or x.is_contiguous():
        return x.reshape(1, -1)
    return x if x.dim() == 2 else x.unsqueeze(1)


def _factor(divisor: float, dtype: torch.dtype) -> float:
    """Return 1 / ``divisor`` as torch rounds it to ``dtype``."""
    return torch.ones((), dtype=dtype, device="cpu").div_(divisor).item()


def _launch(kernel: Any, matrix: Tensor) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """Return the number of programs, the numbers that describe tiles and rows, and the options."""
    count = matrix.numel()
    last_tile, last_count = divmod(count - 1, TILE)
    width = -(-(last_count + 1) // 8)
    num_octets = last_tile * (TILE // 8) + width
    octets = min(tile_entries(kernel) // 8, triton.next_power_of_2(num_octets))
    options = {
        "STRIDED": not matrix.is_contiguous(),
        "INDEX": index_dtype(count),
        "ACCUMULATE": tl.float64 if accumulation_dtype(matrix.dtype) == torch.float64 else tl.float32,
        "OCTETS": octets,
    }
    return triton.cdiv(num_octets, octets), (last_tile, last_count + 1, width, matrix.shape[1]), options
