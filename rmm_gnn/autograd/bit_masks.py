"""One bit for every entry of a tensor, in any shape: a flat run of bytes, packed tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rmm_gnn.codecs.bitpack import pack, packed_width, unpack

# Entries handled at a time: few enough to stay in cache; a multiple of 8, so that tiles do not share bytes.
TILE = 1 << 18


class Tile(NamedTuple):
    """A run of entries of a flat tensor and the bytes their bits are packed in."""

    entries: slice
    octets: slice


def mask_bytes(num_entries: int) -> int:
    """Bytes of the bits of ``num_entries`` entries: ceil(n / 8)."""
    return packed_width(num_entries, 1)


def tiles(num_entries: int) -> Iterator[Tile]:
    """Cut a flat tensor into tiles."""
    for start in range(0, num_entries, TILE):
        stop = min(start + TILE, num_entries)
        yield Tile(slice(start, stop), slice(start // 8, mask_bytes(stop)))


def write_bits(mask: Tensor, bits: Tensor, tile: Tile) -> None:
    """Pack the bool ``mask`` of one tile into its place in ``bits``."""
    pack(mask.view(torch.uint8).unsqueeze(0), bits[tile.octets].unsqueeze(0), 1)


def read_bits(bits: Tensor, tile: Tile) -> Tensor:
    """Return the bool mask of one tile."""
    count = tile.entries.stop - tile.entries.start
    return unpack(bits[tile.octets].unsqueeze(0), count, 1).view(torch.bool).squeeze(0)
