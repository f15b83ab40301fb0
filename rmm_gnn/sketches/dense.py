"""Sketches without zeros: S is generated tile by tile inside the workspace, and never exists whole."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of, tile
from rmm_gnn.seeding import Stream, hash_index, mix32
from rmm_gnn.sketches.base import Draw, Sketch, State

# Small tiles stay in a processor's cache while the entries pass through the dozen operations that make them.
_MAX_TILE_ENTRIES = 2**18


@dataclass(frozen=True)
class EntrywiseSketch(Sketch):
    """A dense family whose entry (i, j) is a function of (seed, i, j)."""

    selects_rows: ClassVar[bool] = True

    @property
    @abstractmethod
    def bytes_per_entry(self) -> int:
        """Transient bytes that ``entries`` needs for each entry, result included."""

    @abstractmethod
    def entries(self, seed: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:  # [R, stop - start]
        """Return the float32 entries of S for the given rows and for columns [start, stop), with unit variance."""

    def to_dense(
        self,
        num_rows: int,
        sketch_size: int,
        seed: Tensor,
        *,
        state: State = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        rows = torch.arange(num_rows, device=seed.device)
        return self.entries(seed, rows, 0, sketch_size).to(dtype).mul_(sketch_size**-0.5)

    def sketch_rows(self, matrix: Tensor, draw: Draw, start: int, stop: int) -> Tensor:
        if draw.backend == "triton":
            from rmm_gnn.kernels import dense_triton

            return dense_triton.sketch(
                matrix, draw.seed, draw.sketch_size, start, stop, entries=self.name, rows=draw.rows
            )
        num_rows, num_columns = count_of(matrix, draw.rows), matrix.shape[1]
        dtype = accumulation_dtype(matrix.dtype)
        out = matrix.new_zeros((stop - start, num_columns), dtype=dtype)

        copy_bytes = 0 if matrix.dtype == dtype and matrix.is_contiguous() else num_columns * dtype.itemsize
        if draw.rows is not None:
            copy_bytes += num_columns * matrix.element_size()
        width = min(stop - start, 4096)
        width = max(1, min(width, draw.workspace_bytes // (2 * self.bytes_per_entry)))
        height = draw.workspace_bytes // (width * self.bytes_per_entry + copy_bytes)
        height = max(1, min(height, _MAX_TILE_ENTRIES // width))

        # The outer loop is over rows, so that a tile of the matrix is converted once for all columns of S.
        for row in range(0, num_rows, height):
            part = tile(matrix, draw.rows, row, min(row + height, num_rows)).to(dtype)
            rows = torch.arange(row, row + part.shape[0], device=matrix.device)
            for column in range(start, stop, width):
                block = self.entries(draw.seed, rows, column, min(column + width, stop)).to(dtype)
                out[column - start : column - start + block.shape[1]].addmm_(block.T, part)
        return out.mul_(draw.sketch_size**-0.5)


def cell_words(seed: Tensor, rows: Tensor, columns: Tensor) -> Tensor:  # [R], [C] -> [R, C]
    """One 32-bit word for every (row, column) pair, in int64 lanes."""
    row_words = hash_index(seed, Stream.ENTRY_ROWS, rows)
    column_words = hash_index(seed, Stream.ENTRY_COLUMNS, columns)
    return mix32(row_words.unsqueeze(1) ^ column_words)
