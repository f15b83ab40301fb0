"""Block-diagonal random signs over permuted rows: between CountSketch and a dense S."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn._validation import check_positive_int
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of, numbers
from rmm_gnn.permutation import permutation
from rmm_gnn.sketches.base import Draw, Sketch, State
from rmm_gnn.sketches.blocks import block_start
from rmm_gnn.sketches.moments import Moments
from rmm_gnn.sketches.rademacher import RademacherSketch

_ENTRIES = RademacherSketch()


@dataclass(frozen=True)
class BlockRademacherSketch(Sketch):
    r"""Permute the rows, cut them into K blocks of about ``block_rows``, sketch each with a dense Rademacher matrix.

    The product costs 1/K of a dense one and maps to small dense products that a GPU likes.  Block t has b_t rows and
    k_t sketch rows, both nearly equal over blocks, K = clamp(round(B / block_rows), 1, k).

    .. math::
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = (a + c - 2d) \sum_t \frac{b_t (b_t - 1)}{B (B - 1) k_t}

    with a, c, d of ``moments``; for equal blocks K (b - 1)/(B - 1) times that of the dense Rademacher sketch.

    Args:
        block_rows: Rows in a block, b.  B or more gives one block, the dense sketch over permuted rows.

    Raises:
        ValueError: If ``block_rows`` is below 1.
        TypeError: If ``block_rows`` is not a whole number.
    """

    name: ClassVar[str] = "block_rademacher"
    backends: ClassVar[tuple[str, ...]] = ("triton",)
    selects_rows: ClassVar[bool] = True
    block_rows: int = 512

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_rows", check_positive_int("block_rows", self.block_rows))

    def num_blocks(self, num_rows: int, sketch_size: int) -> int:
        """Return K for a sketch of this size."""
        return max(1, min(round(num_rows / self.block_rows), sketch_size))

    def to_dense(
        self,
        num_rows: int,
        sketch_size: int,
        seed: Tensor,
        *,
        state: State = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        dense = torch.zeros(num_rows, sketch_size, dtype=dtype, device=seed.device)
        num_blocks = self.num_blocks(num_rows, sketch_size)
        order = permutation(seed, num_rows, 0, num_rows)
        for block in range(num_blocks):
            begin, end = (block_start(block + step, num_rows, num_blocks) for step in (0, 1))
            first, last = (block_start(block + step, sketch_size, num_blocks) for step in (0, 1))
            rows = order[begin:end]
            entries = _ENTRIES.entries(seed, rows, first, last).to(dtype)
            dense[rows.long(), first:last] = entries * (last - first) ** -0.5
        return dense

    def sketch_rows(self, matrix: Tensor, draw: Draw, start: int, stop: int) -> Tensor:
        num_rows, num_columns = count_of(matrix, draw.rows), matrix.shape[1]
        seed, sketch_size = draw.seed, draw.sketch_size
        num_blocks = self.num_blocks(num_rows, sketch_size)
        if draw.backend == "triton":
            from rmm_gnn.kernels import dense_triton

            return dense_triton.sketch(
                matrix, seed, sketch_size, start, stop, entries=_ENTRIES.name, num_blocks=num_blocks, rows=draw.rows
            )
        dtype = accumulation_dtype(matrix.dtype)
        out = matrix.new_zeros((stop - start, num_columns), dtype=dtype)
        row_bytes = 96 + num_columns * (dtype.itemsize + matrix.element_size())

        first_block = ((start + 1) * num_blocks - 1) // sketch_size
        last_block = (stop * num_blocks - 1) // sketch_size + 1
        for block in range(first_block, last_block):
            begin, end = (block_start(block + step, num_rows, num_blocks) for step in (0, 1))
            first, last = (block_start(block + step, sketch_size, num_blocks) for step in (0, 1))
            scale = (last - first) ** -0.5
            first, last = max(first, start), min(last, stop)
            height = max(1, draw.workspace_bytes // (row_bytes + (last - first) * _ENTRIES.bytes_per_entry))
            for position in range(begin, end, height):
                rows = permutation(seed, num_rows, position, min(position + height, end))
                entries = _ENTRIES.entries(seed, rows, first, last).to(dtype)
                tile = matrix.index_select(0, numbers(draw.rows, rows)).to(dtype)
                out[first - start : last - start].addmm_(entries.T, tile, alpha=scale)
        return out

    def variance_of_moments(self, m: Moments, num_rows: int, sketch_size: int) -> Tensor:
        if num_rows == 1:
            return torch.zeros_like(m.a)
        num_blocks = self.num_blocks(num_rows, sketch_size)
        factor = 0.0
        for block in range(num_blocks):
            size = block_start(block + 1, num_rows, num_blocks) - block_start(block, num_rows, num_blocks)
            width = block_start(block + 1, sketch_size, num_blocks) - block_start(block, sketch_size, num_blocks)
            factor += size * (size - 1) / (num_rows * (num_rows - 1) * width)
        return (m.a + m.c - 2.0 * m.d) * factor
