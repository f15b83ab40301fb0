"""Stochastic rounding to a few bits and back in C, for the CPU: the codes of ``StochasticCodec``, bit for bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmm_gnn.kernels.native import TYPES, check_taken, library, pointer, threads_for


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

    With ``mean`` and ``inv_std``, in the accumulation type, what is coded is ``(block - mean) * inv_std``, of which no
    copy is made.  Allocates 9 bytes a column for each thread, or 17.

    Raises:
        ValueError: If the kernels cannot read ``block``, or codes or scales are not contiguous.
        MemoryError: If there is no memory.
    """
    check_taken(block)
    if not (codes.is_contiguous() and scales.is_contiguous()):
        raise ValueError("'codes' and 'scales' must be contiguous (got others). Encode into what a codec allocates.")
    if block.numel() == 0:
        return
    vectors = [None if vector is None else vector.contiguous() for vector in (mean, inv_std)]
    done(
        library().rmm_encode(
            block.data_ptr(),
            TYPES[block.dtype],
            *block.stride(),
            *map(pointer, vectors),
            block.shape[0],
            start,
            int(seed),
            *coded(codes, scales, block.shape[1], bits, group_size),
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
    out = torch.empty(codes.shape[0], num_columns, dtype=dtype, device="cpu")
    codes, scales = codes.contiguous(), scales.contiguous()
    if out.numel():
        where = coded(codes, scales, num_columns, bits, group_size)
        threads = threads_for(out.numel(), out.shape[0])
        done(library().rmm_decode(*where, out.shape[0], out.data_ptr(), TYPES[dtype], threads))
    return out


def coded(codes: Tensor, scales: Tensor, num_columns: int, bits: int, group_size: int | None) -> tuple[Any, ...]:
    """What tells the functions in C where a coded matrix lies."""
    size = num_columns if group_size is None else min(group_size, num_columns)
    return codes.data_ptr(), scales.data_ptr(), scales.dtype == torch.float32, bits, num_columns, size


def done(failed: int) -> None:
    """Check what a function in C returned.

    Raises:
        MemoryError: If it found no memory.
    """
    if failed:
        raise MemoryError("There is no memory for a row of codes. Use smaller batches.")
