"""CountSketch with balanced buckets: the default, one pass over the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rmm_gnn.kernels import bucket_sum, count_sketch_native, resolve
from rmm_gnn.kernels.reference import accumulation_dtype, gathers_in_place
from rmm_gnn.kernels.rows import count_of, numbers
from rmm_gnn.permutation import permutation
from rmm_gnn.seeding import random_signs
from rmm_gnn.sketches.base import Draw, Pass, Sketch, State
from rmm_gnn.sketches.blocks import block_start, pair_share
from rmm_gnn.sketches.moments import Moments

# Permutation, hash and offset vectors, all int64 or smaller, that exist at once for one position.
_BYTES_PER_POSITION = 96


class RowTile(NamedTuple):
    """Some rows of S, which have one entry each.

    Attributes:
        rows: Their numbers [P].
        signs: Their entries [P].
        buckets: The columns of these less ``first`` [P].
        first: The first bucket met.
        last: The end of the buckets met.
    """

    rows: Tensor
    signs: Tensor
    buckets: Tensor
    first: int
    last: int


@dataclass(frozen=True)
class CountSketch(Sketch):
    r"""Permute the rows, cut them into k nearly equal buckets, add each bucket's rows with random signs.

    S has one entry :math:`\pm 1` a row, so S^T X costs B N additions whatever k is, against 2 B k N operations of a
    dense S.  Buckets need not be equal: bucket j holds positions floor(jB/k) to floor((j+1)B/k) of the permutation.

    .. math::
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = (a + c - 2d) \sum_j \frac{b_j (b_j - 1)}{B (B - 1)}

    with a, c, d of ``moments`` and bucket sizes b_j; for equal buckets the sum is (B - k)/((B - 1) k).  This is no more
    than any dense S of the same k has, and 0 at k = B, where S is a signed permutation.

    Example:
        >>> x = torch.randn(100, 3)
        >>> sketch = CountSketch()
        >>> s = sketch.to_dense(100, 10, torch.tensor(7))
        >>> torch.allclose(sketch.apply(x, torch.tensor(7), 10), s.T @ x, atol=1e-5)
        True

    References:
        M. Charikar, K. Chen, M. Farach-Colton, *Finding Frequent Items in Data Streams*, 2002 (independent buckets).
    """

    name: ClassVar[str] = "count_sketch"
    selects_rows: ClassVar[bool] = True
    backends: ClassVar[tuple[str, ...]] = ("native", "scatter", "triton")

    def to_dense(
        self,
        num_rows: int,
        sketch_size: int,
        seed: Tensor,
        *,
        state: State = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        positions = torch.arange(num_rows, device=seed.device)
        rows = permutation(seed, num_rows)
        bucket = torch.div((positions + 1) * sketch_size - 1, num_rows, rounding_mode="floor")
        dense = torch.zeros(num_rows, sketch_size, dtype=dtype, device=seed.device)
        dense[rows.long(), bucket] = random_signs(seed, 0, num_rows, dtype)
        return dense

    def sketch_rows(self, matrix: Tensor, draw: Draw, start: int, stop: int) -> Tensor:
        backend = resolve(draw.backend, matrix)
        if backend == "native":
            return count_sketch_native.count_sketch(
                matrix, draw.seed, draw.sketch_size, start, stop, rows=draw.rows
            ).rows
        if backend == "triton":
            from rmm_gnn.kernels import count_sketch_triton

            return count_sketch_triton.sketch(matrix, draw.seed, draw.sketch_size, start, stop, rows=draw.rows)[0]
        num_rows, num_columns = count_of(matrix, draw.rows), matrix.shape[1]
        seed, sketch_size = draw.seed, draw.sketch_size
        dtype = accumulation_dtype(matrix.dtype)
        gathered = 0
        if backend == "scatter" or not gathers_in_place(matrix):
            gathered = num_columns * (dtype.itemsize + matrix.element_size())
        limit = max(1, draw.workspace_bytes // (_BYTES_PER_POSITION + gathered))

        def sums_of(first: int, last: int, begin: int, end: int) -> Tensor:
            # A permutation of the selected rows is one more look-up: bucket sums gather in any case.
            rows = numbers(draw.rows, permutation(seed, num_rows, begin, end))
            offsets = _offsets(num_rows, sketch_size, first, last, begin, seed.device).to(rows.dtype)
            return bucket_sum(matrix, rows, random_signs(seed, begin, end, dtype), offsets, backend)

        tiles = list(_position_tiles(num_rows, sketch_size, start, stop, limit))
        if len(tiles) == 1:
            return sums_of(*tiles[0])
        out = matrix.new_zeros((stop - start, num_columns), dtype=dtype)
        for first, last, begin, end in tiles:
            out[first - start : last - start] += sums_of(first, last, begin, end)
        return out

    def one_pass(self, matrix: Tensor, draw: Draw) -> Pass | None:
        size, backend = draw.sketch_size, resolve(draw.backend, matrix)
        if backend == "native":
            rows, sums, ones = count_sketch_native.count_sketch(
                matrix,
                draw.seed,
                size,
                0,
                size,
                rows=draw.rows,
                with_sums=True,
                workspace_bytes=draw.workspace_bytes // 2,
            )
        elif backend == "triton":
            from rmm_gnn.kernels import count_sketch_triton

            rows, sums = count_sketch_triton.sketch(matrix, draw.seed, size, 0, size, rows=draw.rows, with_sums=True)
            ones = self.sketch_ones(count_of(matrix, draw.rows), draw, rows.dtype)
        else:
            return None
        assert sums is not None and ones is not None
        return Pass(rows, sums, ones)

    def encode_in_one_pass(self, matrix: Tensor, draw: Draw, payload: list[Tensor], bits: int) -> bool:
        if resolve(draw.backend, matrix) != "triton":
            return False
        from rmm_gnn.kernels import sketch_codes_triton as kernels

        if matrix.shape[1] > kernels.MAX_COLUMNS:
            return False
        size = draw.sketch_size
        kernels.sketch_and_encode(matrix, draw.seed, size, 0, size, *payload, bits=bits, rows=draw.rows)
        return True

    def sketch_ones(self, num_rows: int, draw: Draw, dtype: torch.dtype) -> Tensor:
        if resolve(draw.backend, draw.seed, dtype) == "triton":
            return super().sketch_ones(num_rows, draw, dtype)
        seed, sketch_size = draw.seed, draw.sketch_size
        # Needs the signs only: differences of their running sum.
        out = torch.zeros(sketch_size, dtype=dtype, device=seed.device)
        limit = max(1, draw.workspace_bytes // 32)
        for first, last, begin, end in _position_tiles(num_rows, sketch_size, 0, sketch_size, limit):
            running = random_signs(seed, begin, end, dtype).to(torch.int32).cumsum(0, dtype=torch.int32)
            before = torch.nn.functional.pad(running, (1, 0))
            offsets = _offsets(num_rows, sketch_size, first, last, begin, seed.device)
            ends = torch.nn.functional.pad(offsets[1:], (0, 1), value=end - begin)
            out[first:last] += before[ends] - before[offsets]
        return out

    def iter_rows(self, num_rows: int, draw: Draw, height: int, dtype: torch.dtype) -> Iterator[RowTile]:
        """Yield S bucket by bucket, at most ``height`` of its rows at a time: what a product S Z needs."""
        seed, sketch_size = draw.seed, draw.sketch_size
        limit = max(1, draw.workspace_bytes // _BYTES_PER_POSITION)
        for _, _, begin, end in _position_tiles(num_rows, sketch_size, 0, sketch_size, limit):
            # Far more positions than rows of data fit into a tile, and every part of the permutation has a price.
            rows, signs = permutation(seed, num_rows, begin, end), random_signs(seed, begin, end, dtype)
            for start in range(begin, end, height):
                stop = min(start + height, end)
                first, last = (((position + 1) * sketch_size - 1) // num_rows for position in (start, stop - 1))
                ends = torch.arange(start + 1, stop + 1, device=seed.device).mul_(sketch_size).sub_(1)
                buckets = torch.div(ends, num_rows, rounding_mode="floor").sub_(first)
                part = slice(start - begin, stop - begin)
                yield RowTile(rows[part], signs[part], buckets, first, last + 1)

    def variance_of_moments(self, m: Moments, num_rows: int, sketch_size: int) -> Tensor:
        return (m.a + m.c - 2.0 * m.d) * pair_share(num_rows, sketch_size)


def _offsets(num_rows: int, sketch_size: int, first: int, last: int, begin: int, device: torch.device) -> Tensor:
    """Start of each bucket in [first, last) relative to position ``begin``; 0 for one that began earlier."""
    buckets = torch.arange(first, last, device=device)
    return torch.div(buckets * num_rows, sketch_size, rounding_mode="floor").sub_(begin).clamp_(min=0)


def _position_tiles(
    num_rows: int, sketch_size: int, start: int, stop: int, limit: int
) -> Iterator[tuple[int, int, int, int]]:
    """Cut the positions of buckets [start, stop) into tiles of at most ``limit``.

    Yields (first bucket, end bucket, begin, end position).  A bucket larger than ``limit`` is spread over tiles.
    """
    begin, stop_position = block_start(start, num_rows, sketch_size), block_start(stop, num_rows, sketch_size)
    while begin < stop_position:
        end = min(begin + limit, stop_position)
        first = ((begin + 1) * sketch_size - 1) // num_rows
        last = (end * sketch_size - 1) // num_rows + 1
        yield first, last, begin, end
        begin = end
