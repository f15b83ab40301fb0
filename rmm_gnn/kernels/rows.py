"""Some rows of a matrix read where they lie, so that there is no copy of them all."""

from __future__ import annotations

from torch import Tensor


def count_of(matrix: Tensor, rows: Tensor | None) -> int:
    """Return B: how many rows ``rows`` selects of ``matrix``, all of them if None."""
    return matrix.shape[0] if rows is None else rows.shape[0]


def numbers(rows: Tensor | None, positions: Tensor) -> Tensor:  # [B], [P] -> [P]
    """Return which rows of the matrix stand at these positions of the selection."""
    return positions if rows is None else rows.index_select(0, positions)


def tile(matrix: Tensor, rows: Tensor | None, start: int, stop: int) -> Tensor:
    """Return positions [start, stop) of the selection: a view of ``matrix``, or a copy where ``rows`` are selected."""
    return matrix[start:stop] if rows is None else matrix.index_select(0, rows[start:stop])
