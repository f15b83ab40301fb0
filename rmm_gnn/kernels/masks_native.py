"""ReLU, dropout, both, and their gradients in C, for the CPU; bits lie as ``autograd.bit_masks`` has them."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.kernels.native import TYPES, library, threads_for

_RELU, _LEAKY_RELU, _RELU_DROPOUT = range(3)


def relu(x: Tensor, negative_slope: float | None) -> tuple[Tensor, Tensor]:  # [*] -> [*], [ceil(n / 8)]
    """Return ReLU of ``x``, or leaky ReLU where a slope is given, and one bit for every entry."""
    kind = _RELU if negative_slope is None else _LEAKY_RELU
    return _relu(x, kind, slope=negative_slope or 0.0)


def relu_dropout(x: Tensor, threshold: int, factor: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Return ReLU of ``x``, times ``factor`` where an entry's hash is ``threshold`` or more and times 0 elsewhere.

    The bits say whether the gradient passes both.
    """
    return _relu(x, _RELU_DROPOUT, factor=factor, threshold=threshold, seed=int(seed))


def _relu(
    x: Tensor, kind: int, *, slope: float = 0.0, factor: float = 1.0, threshold: int = 0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    source = x.contiguous()
    out, bits = torch.empty_like(source), torch.empty((x.numel() + 7) // 8, dtype=torch.uint8)
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


def masked_grad(grad_output: Tensor, bits: Tensor, factor: float, slope: float) -> Tensor:
    """Return ``grad_output`` times ``factor``, and times ``slope`` where the bit is not set; 0 there if that is 0."""
    source = grad_output.contiguous()
    out = torch.empty_like(source)
    threads = threads_for(source.numel(), source.numel())
    library().rmm_masked_grad(
        source.data_ptr(),
        TYPES[source.dtype],
        source.numel(),
        bits.data_ptr(),
        slope,
        factor,
        out.data_ptr(),
        threads,
    )
    return out


def dropout(x: Tensor, threshold: int, factor: float, seed: Tensor, first: int = 0) -> Tensor:
    """Return ``x`` times ``factor`` where an entry's hash is ``threshold`` or more, and times 0 elsewhere.

    ``x`` holds the entries from number ``first`` on of the tensor whose mask it is.
    """
    source = x.contiguous()
    out = torch.empty_like(source)
    threads = threads_for(x.numel(), x.numel())
    library().rmm_dropout(
        source.data_ptr(),
        TYPES[x.dtype],
        x.numel(),
        first,
        factor,
        int(seed),
        threshold,
        out.data_ptr(),
        threads,
    )
    return out
