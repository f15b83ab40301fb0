"""Small codes in bytes.

Codes are packed along columns in planes: byte j of a row holds columns j, j + W, j + 2 W, ... of it, lowest bits first,
with W the bytes of a row.  Every plane is a contiguous run of columns, so packing and unpacking are a few shifts of
whole blocks, and a row never shares a byte with the next one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_width(num_columns: int, bits: int) -> int:
    """Bytes of a packed row: ceil(num_columns / (8 / bits))."""
    per_byte = 8 // bits
    return (num_columns + per_byte - 1) // per_byte


def pack(
    codes: Tensor,  # [R, C] uint8, below 2^bits
    out: Tensor,  # [R, packed_width(C, bits)] uint8
    bits: int,
) -> None:
    """Write ``codes`` into ``out``; bits of ``out`` that no column needs become 0."""
    if bits == 8:
        out.copy_(codes)
        return
    num_columns, width = codes.shape[1], out.shape[1]
    out.copy_(codes[:, :width])
    for plane in range(1, 8 // bits):
        part = codes[:, plane * width : min((plane + 1) * width, num_columns)]
        if part.shape[1]:
            out[:, : part.shape[1]].bitwise_or_(part << (bits * plane))


def unpack(
    packed: Tensor,  # [R, packed_width(C, bits)] uint8
    num_columns: int,
    bits: int,
    dtype: torch.dtype = torch.uint8,
) -> Tensor:  # [R, C]
    """Return the codes that ``pack`` packed, as ``dtype``."""
    if bits == 8:
        return packed.to(dtype)
    width, mask = packed.shape[1], 2**bits - 1
    codes = torch.empty(packed.shape[0], num_columns, dtype=dtype, device=packed.device)
    for plane in range(8 // bits):
        part = codes[:, plane * width : min((plane + 1) * width, num_columns)]
        if part.shape[1]:
            part.copy_((packed[:, : part.shape[1]] >> (bits * plane)).bitwise_and_(mask))
    return codes
