"""Stochastic rounding to a few bits and back in C, for the CPU: the codes of ``StochasticCodec``, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmm_gnn.kernels.native import TYPES, library, pointer, takes, threads_for
from rmm_gnn.kernels.reference import accumulation_dtype


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
    factor: Tensor | None = None,  # [N]
) -> None:
    """Write the codes of ``block``, rows [start, start + R) of a matrix, and offsets and steps beside them.

    With ``mean`` and ``factor``, in the accumulation type, what is coded is ``(block - mean) * factor``, of which no
    copy is made.  Allocates 9 bytes a column for each thread, or 17.

    Raises:
        ValueError: If the kernels cannot read ``block``.
        MemoryError: If there is no memory.
    """
    check(block)
    if block.numel() == 0:
        return
    _done(
        library().rmm_encode(
            block.data_ptr(),
            TYPES[block.dtype],
            *block.stride(),
            pointer(None if mean is None else mean.contiguous()),
            pointer(None if factor is None else factor.contiguous()),
            block.shape[0],
            start,
            int(seed),
            *_coded(codes, scales, block.shape[1], bits, group_size),
            threads_for(block.numel(), block.shape[0]),
        )
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
        ValueError: If the kernels do not know ``dtype``.
        MemoryError: If there is no memory.
    """
    if dtype not in TYPES:
        raise ValueError(f"'backend' must be one that reads codes as {dtype} (got 'native'). Use backend='auto'.")
    out = torch.empty(codes.shape[0], num_columns, dtype=dtype)
    if out.numel():
        coded = _coded(codes, scales, num_columns, bits, group_size)
        threads = threads_for(out.numel(), out.shape[0])
        _done(library().rmm_decode(*coded, out.shape[0], out.data_ptr(), TYPES[dtype], threads))
    return out


def reduce_products(
    gradient: Tensor,  # [R, N]
    codes: Tensor,
    scales: Tensor,
    *,
    bits: int,
    group_size: int | None,
) -> tuple[Tensor, Tensor]:  # [N], [N]
    """Return column sums of ``gradient``, and of its products with what was coded, in the accumulation type.

    Raises:
        ValueError: If the kernels cannot read ``gradient``.
        MemoryError: If there is no memory.
    """
    check(gradient)
    gradient = gradient.contiguous()
    out = torch.zeros(2, gradient.shape[1], dtype=torch.float64)
    if gradient.numel():
        _done(
            library().rmm_norm_reduce(
                *_coded(codes, scales, gradient.shape[1], bits, group_size),
                gradient.shape[0],
                gradient.data_ptr(),
                TYPES[gradient.dtype],
                out.data_ptr(),
                threads_for(gradient.numel(), gradient.shape[0]),
            )
        )
    sums, products = out.to(accumulation_dtype(gradient.dtype))
    return sums, products


def norm_gradient(
    gradient: Tensor,  # [R, N]
    codes: Tensor,
    scales: Tensor,
    factor: Tensor,  # [N]
    mean_gradient: Tensor,  # [N]
    mean_product: Tensor,  # [N]
    *,
    bits: int,
    group_size: int | None,
) -> Tensor:  # [R, N]
    """Return ``(gradient - mean_gradient - coded * mean_product) * factor`` in the type of ``gradient``.

    The vectors are of the accumulation type.

    Raises:
        ValueError: If the kernels cannot read ``gradient``.
        MemoryError: If there is no memory.
    """
    check(gradient)
    gradient = gradient.contiguous()
    out = torch.empty_like(gradient)
    if gradient.numel():
        vectors = [vector.contiguous() for vector in (factor, mean_gradient, mean_product)]
        _done(
            library().rmm_norm_gradient(
                *_coded(codes, scales, gradient.shape[1], bits, group_size),
                gradient.shape[0],
                gradient.data_ptr(),
                TYPES[gradient.dtype],
                *map(pointer, vectors),
                out.data_ptr(),
                threads_for(gradient.numel(), gradient.shape[0]),
            )
        )
    return out


def check(block: Tensor) -> None:
    """Check that the kernels can read ``block``.

    Raises:
        ValueError: If they cannot.
    """
    if not takes(block):
        raise ValueError(
            f"'backend' must be one that takes {block.dtype} on {block.device.type} (got 'native', which is for plain "
            "float tensors on the CPU, without a gradient). Use backend='auto'."
        )


def _coded(codes: Tensor, scales: Tensor, num_columns: int, bits: int, group_size: int | None) -> tuple[Any, ...]:
    size = num_columns if group_size is None else min(group_size, num_columns)
    return codes.data_ptr(), scales.data_ptr(), scales.dtype == torch.float32, bits, num_columns, size


def _done(failed: int) -> None:
    if failed:
        raise MemoryError("There is no memory for a row of codes. Use smaller batches.")
