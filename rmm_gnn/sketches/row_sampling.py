"""Uniform row sampling: keep k of the B rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn._validation import check_bool
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of, numbers
from rmm_gnn.permutation import permutation
from rmm_gnn.seeding import Stream, uniform
from rmm_gnn.sketches.base import Draw, Sketch, State
from rmm_gnn.sketches.moments import Moments


@dataclass(frozen=True)
class RowSamplingSketch(Sketch):
    r"""Keep k rows drawn uniformly, times :math:`\sqrt{B/k}`.  The cheapest sketch: it reads k rows only.

    .. math::
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = \frac{B d - c}{k} \quad \text{times} \quad \frac{B - k}{B - 1}
        \text{ without replacement}

    with c, d of ``moments``.  Mini-batch noise is of this kind (eq. 9), so at rate 0.1 this adds to the gradient about
    what training on a tenth of the rows would.

    Args:
        replacement: Draw with replacement; without is better and the default.

    Raises:
        TypeError: If ``replacement`` is not a bool.
    """

    name: ClassVar[str] = "row_sampling"
    reads_every_row: ClassVar[bool] = False
    selects_rows: ClassVar[bool] = True
    replacement: bool = False

    def __post_init__(self) -> None:
        check_bool("replacement", self.replacement)

    def _rows(self, num_rows: int, seed: Tensor, start: int, stop: int) -> Tensor:
        if not self.replacement:
            return permutation(seed, num_rows, start, stop)
        draws = uniform(seed, Stream.SAMPLING, torch.arange(start, stop, device=seed.device))
        return draws.mul_(num_rows).long().clamp_(max=num_rows - 1)

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
        columns = torch.arange(sketch_size, device=seed.device)
        dense[self._rows(num_rows, seed, 0, sketch_size).long(), columns] = (num_rows / sketch_size) ** 0.5
        return dense

    def sketch_rows(self, matrix: Tensor, draw: Draw, start: int, stop: int) -> Tensor:
        num_rows, num_columns = count_of(matrix, draw.rows), matrix.shape[1]
        out = matrix.new_empty((stop - start, num_columns), dtype=accumulation_dtype(matrix.dtype))
        scale = (num_rows / draw.sketch_size) ** 0.5
        height = max(1, draw.workspace_bytes // (96 + num_columns * matrix.element_size()))
        for begin in range(start, stop, height):
            end = min(begin + height, stop)
            rows = numbers(draw.rows, self._rows(num_rows, draw.seed, begin, end))
            out[begin - start : end - start] = matrix.index_select(0, rows)
        return out.mul_(scale)

    def variance_of_moments(self, m: Moments, num_rows: int, sketch_size: int) -> Tensor:
        with_replacement = (num_rows * m.d - m.c) / sketch_size
        if self.replacement:
            return with_replacement
        return with_replacement * ((num_rows - sketch_size) / max(1, num_rows - 1))
