"""ReLU, dropout, both, and their gradients in C, for the CPU; bits lie as ``autograd.bit_masks`` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.kernels.native import TYPES, check_taken, library, threads_for

_RELU, _LEAKY_RELU, _RELU_DROPOUT = range(3)


def relu(x: Tensor, negative_slope: float | None) -> tuple[Tensor, Tensor]:  # [*] -> [*], [ceil(n / 8)]
    """Return ReLU of ``x``, or leaky ReLU where a slope is given, and one bit for every entry.

    The output has the strides that torch would give it; other ones than those of rows cost a copy.

    Raises:
        ValueError: If the kernels cannot read ``x``.
    """
    kind = _RELU if negative_slope is None else _LEAKY_RELU
    out, bits = _activate(x, kind, slope=0.0 if negative_slope is None else negative_slope)
    return out if x.is_contiguous() else torch.empty_like(x).copy_(out), bits


def relu_dropout(x: Tensor, p: float, seed: Tensor) -> tuple[Tensor, Tensor]:  # [*] -> [*], [ceil(n / 8)]
    """Return dropout of ReLU of ``x``, and one bit for every entry: whether the gradient passes both.

    Raises:
        ValueError: If the kernels cannot read ``x``.
    """
    return _activate(x, _RELU_DROPOUT, factor=_factor(x, 1 - p), threshold=_threshold(p), seed=int(seed))


def dropout(x: Tensor, p: float, seed: Tensor, first: int = 0) -> Tensor:  # [*] -> [*]
    """Return dropout of ``x``, the entries from number ``first`` on of the tensor whose mask it is.

    Raises:
        ValueError: If the kernels cannot read ``x``.
    """
    check_taken(x)
    source = x.contiguous()
    out = torch.empty_like(source)
    library().rmm_dropout(
        source.data_ptr(),
        TYPES[x.dtype],
        x.numel(),
        first,
        _factor(x, 1 - p),
        int(seed),
        _threshold(p),
        out.data_ptr(),
        threads_for(x.numel(), x.numel()),
    )
    return out


def masked_grad(grad_output: Tensor, bits: Tensor, divisor: float, slope: float) -> Tensor:
    """Return ``grad_output`` over ``divisor`` where the bit is set and times ``slope`` elsewhere; 0 where that is 0.

    Raises:
        ValueError: If the kernels cannot read ``grad_output``.
    """
    check_taken(grad_output)
    source, bits = grad_output.contiguous(), bits.contiguous()
    out = torch.empty_like(source)
    library().rmm_masked_grad(
        source.data_ptr(),
        TYPES[source.dtype],
        source.numel(),
        bits.data_ptr(),
        slope,
        _factor(source, divisor),
        out.data_ptr(),
        threads_for(source.numel(), source.numel()),
    )
    return out


def _activate(
    x: Tensor, kind: int, *, slope: float = 0.0, factor: float = 1.0, threshold: int = 0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    check_taken(x)
    source = x.contiguous()
    out, bits = torch.empty_like(source), torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device="cpu")
    library().rmm_relu(
        source.data_ptr(),
        TYPES[x.dtype],
        x.numel(),
        kind,
        slope,
        factor,
        seed,
        threshold,
        out.data_ptr(),
        bits.data_ptr(),
        threads_for(x.numel(), x.numel()),
    )
    return out, bits


def _threshold(p: float) -> int:
    """Entries whose hash is no less are kept; one of 2^32 is none in C, whose hashes have 32 bits."""
    return min(round(p * 2**32), 2**32 - 1)


def _factor(x: Tensor, divisor: float) -> float:
    """1 / ``divisor``, rounded to the type of ``x``."""
    return float(x.new_ones(()).div_(divisor))
