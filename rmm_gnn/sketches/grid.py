"""Rows as a grid of n outer and L inner ones, and the buckets that two count sketches of its sides cut it into."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from rmm_gnn.sketches.blocks import block_start

REDUCE = ("both", "outer", "inner")
# By how much the two sides may be reduced unequally, before more: the least factor that leaves a choice is taken.
_IMBALANCES = (2, 4, 16, 256)


@lru_cache(maxsize=256)
def factor_sizes(outer: int, inner: int, size: int, reduce: str) -> tuple[int, int]:
    """Return k_1 in [1, n] and k_2 in [1, L] with a product of at most ``size``.

    With "both" it is the largest product of two sides that are reduced about alike; with "outer" and "inner" that side
    is reduced alone, as far as it goes.  For the product itself the answer is the same.
    """
    if reduce == "outer":
        first = min(outer, max(1, size // inner))
        return first, min(inner, size // first)
    if reduce == "inner":
        second = min(inner, max(1, size // outer))
        return min(outer, size // second), second
    for ratio in _IMBALANCES:
        found = [
            (first * second, -max(first * inner, second * outer) / min(first * inner, second * outer), first, second)
            for first in range(1, min(outer, size) + 1)
            if (second := min(inner, size // first, ratio * first * inner // outer)) >= 1
            and ratio * second * outer >= first * inner
        ]
        if found:
            return max(found)[2:]
    return min(outer, size), min(inner, max(1, size // min(outer, size)))


@dataclass(frozen=True)
class Grid:
    """n x L rows, k_1 x k_2 buckets.  Row b L + l is row l of inner block b.

    Positions number the rows bucket by bucket: those of one outer bucket one after the other, in it those of one inner
    bucket, in it those of one inner row.  An outer bucket of m rows has m L positions.

    Attributes:
        outer: n.
        inner: L.
        outer_size: k_1.
        inner_size: k_2.
    """

    outer: int
    inner: int
    outer_size: int
    inner_size: int

    def start_of(self, bucket: int) -> int:
        """Return the first position of a bucket."""
        first, second = divmod(bucket, self.inner_size)
        begin, end = (block_start(first + step, self.outer, self.outer_size) for step in (0, 1))
        return begin * self.inner + block_start(second, self.inner, self.inner_size) * (end - begin)

    def bucket_of(self, position: int) -> int:
        """Return the bucket of a position."""
        first = ((position // self.inner + 1) * self.outer_size - 1) // self.outer
        begin, end = (block_start(first + step, self.outer, self.outer_size) for step in (0, 1))
        place = (position - begin * self.inner) // (end - begin)
        return first * self.inner_size + ((place + 1) * self.inner_size - 1) // self.inner

    def starts(self, first: int, last: int, device: torch.device) -> Tensor:
        """Return ``start_of`` for the buckets [first, last)."""
        bucket = torch.arange(first, last, device=device)
        outer = bucket // self.inner_size
        begin, count = self._outer_bucket(outer)
        return begin * self.inner + (bucket - outer * self.inner_size) * self.inner // self.inner_size * count

    def places(self, begin: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return where positions [begin, end) lie on either side, each in the order of its buckets."""
        position = torch.arange(begin, end, device=device)
        start, count = self._outer_bucket(((position // self.inner + 1) * self.outer_size - 1) // self.outer)
        position -= start * self.inner
        inner = position // count
        return start.add_(position).sub_(count.mul_(inner)), inner

    def outer_range(self, begin: int, end: int) -> tuple[int, int]:
        """Return a range of places on the outer side that has those of positions [begin, end)."""
        if self.inner == 1:
            return begin, end
        first, last = (
            ((position // self.inner + 1) * self.outer_size - 1) // self.outer for position in (begin, end - 1)
        )
        return block_start(first, self.outer, self.outer_size), block_start(last + 1, self.outer, self.outer_size)

    def _outer_bucket(self, number: Tensor) -> tuple[Tensor, Tensor]:
        begin = number * self.outer // self.outer_size
        return begin, (number + 1) * self.outer // self.outer_size - begin

    def tiles(self, start: int, stop: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
        """Cut the positions of buckets [start, stop) into tiles of at most ``limit``.

        Yields (first bucket, end bucket, begin, end position).  A bucket larger than ``limit`` is spread over tiles.
        """
        begin, last = self.start_of(start), self.start_of(stop)
        while begin < last:
            end = min(begin + limit, last)
            yield self.bucket_of(begin), self.bucket_of(end - 1) + 1, begin, end
            begin = end
