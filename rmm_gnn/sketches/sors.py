"""Subsampled orthonormal transforms with random signs (SORS): SRHT, and its cosine and Fourier relatives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn._validation import check_choice
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of
from rmm_gnn.permutation import permutation
from rmm_gnn.seeding import random_signs
from rmm_gnn.sketches.base import Draw, Sketch, State
from rmm_gnn.sketches.moments import moments, squared_norms, tiles
from rmm_gnn.sketches.transforms import TRANSFORMS


@dataclass(frozen=True)
class SORSSketch(Sketch):
    r"""Random signs, an orthonormal transform, and k of its outputs: a subsampled orthonormal transform.

    :math:`S^T = \sqrt{P/k}\, R H D` with signs D, a transform H of length P, and R drawing k rows without replacement.
    Hadamard pads B to a power of two P; "dct" and "dft" (in its real, Hartley form) have P = B.

    .. math::
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = \frac{P - k}{(P - 1)\, k} \Bigl( \sum_{ij} w_{ij}
        \bigl(|x_i|^2 |y_j|^2 + 2 \langle x_i, x_j \rangle \langle y_i, y_j \rangle\bigr)
        - 2 \sum_i w_{ii} |x_i|^2 |y_i|^2 - c \Bigr), \qquad w_{ij} = P \sum_p H_{pi}^2 H_{pj}^2

    For Hadamard w = 1 and this is (P - k)/(P - 1) (a + c - 2d)/k with a, c, d of ``moments``: with padding it does not
    vanish at k = B.  For the cosine and Hartley transforms w differs from a constant in at most four places a row, so
    their closed form is as cheap.

    Transient memory: columns are transformed a few at a time inside the workspace, one at the least (5 P numbers for
    Hadamard, 9 P otherwise, and P more for selected rows), but S^T ``matrix`` is formed whole, k rows of float32 beyond
    the workspace.

    Args:
        transform: "hadamard", "dct" or "dft".

    Raises:
        ValueError: If ``transform`` is unknown.
        TypeError: If ``transform`` is not a string.

    References:
        J. Tropp, *Improved Analysis of the Subsampled Randomized Hadamard Transform*, 2011.  The paper's public code
        scales the cosine variant by k B instead of B / k and uses no signs, so its Table 3 does not speak for SORS.
    """

    name: ClassVar[str] = "sors"
    selects_rows: ClassVar[bool] = True
    transform: str = "hadamard"

    def __post_init__(self) -> None:
        check_choice("transform", self.transform, TRANSFORMS)

    def to_dense(
        self,
        num_rows: int,
        sketch_size: int,
        seed: Tensor,
        *,
        state: State = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        identity = torch.eye(num_rows, dtype=dtype, device=seed.device)
        return self._transform_columns(identity, seed, sketch_size).T

    def _transform_columns(self, matrix: Tensor, seed: Tensor, sketch_size: int) -> Tensor:  # [B, n] -> [k, n]
        num_rows, num_columns = matrix.shape
        transform = TRANSFORMS[self.transform]
        length = transform.length(num_rows)
        dtype = accumulation_dtype(matrix.dtype)
        vectors = matrix.new_zeros((num_columns, length), dtype=dtype)
        signs = random_signs(seed, 0, num_rows, dtype)
        torch.mul(matrix.T, signs, out=vectors[:, :num_rows])
        chosen = transform.select(vectors, permutation(seed, length, 0, sketch_size))
        return chosen.mul_((length / sketch_size) ** 0.5).T

    def iter_blocks(self, matrix: Tensor, draw: Draw) -> Iterator[tuple[int, int, Tensor]]:
        num_rows, num_columns = count_of(matrix, draw.rows), matrix.shape[1]
        transform = TRANSFORMS[self.transform]
        dtype = accumulation_dtype(matrix.dtype)
        # Three vectors serve the signs and the transform's twiddle factors, the others hold columns on their way.
        vectors = draw.workspace_bytes // (transform.length(num_rows) * dtype.itemsize) - 3
        # Rows that are selected take one more buffer for each column.
        width = max(1, vectors // (transform.buffers + (draw.rows is not None)))
        out = matrix.new_empty((draw.sketch_size, num_columns), dtype=dtype)
        for start in range(0, num_columns, width):
            columns = matrix[:, start : start + width]
            if draw.rows is not None:
                columns = columns.index_select(0, draw.rows)
            out[:, start : start + width] = self._transform_columns(columns, draw.seed, draw.sketch_size)
        yield 0, draw.sketch_size, out

    def sketch_rows(self, matrix: Tensor, draw: Draw, start: int, stop: int) -> Tensor:
        ((_, _, whole),) = self.iter_blocks(matrix, draw)
        return whole[start:stop]

    def variance(
        self,
        x: Tensor,
        grad_output: Tensor,
        sketch_size: int,
        *,
        mean: Tensor | None = None,
        row_norms: Tensor | None = None,
    ) -> Tensor:
        transform = TRANSFORMS[self.transform]
        length = transform.length(x.shape[0])
        m = moments(x, grad_output, mean)
        if length == 1:
            return torch.zeros_like(m.a)
        pattern = transform.pattern(length, x.device)
        x_norms = torch.cat([squared_norms(tile) for _, tile in tiles(x, mean)])
        y_norms = torch.cat([squared_norms(tile) for _, tile in tiles(grad_output)])
        diagonal = torch.full_like(x_norms, pattern.base)
        total = pattern.base * (m.a + 2.0 * m.c)
        for sign, maps in ((0.5, pattern.plus), (-0.5, pattern.minus)):
            for target in maps:
                total += sign * (x_norms.dot(y_norms[target]) + 2.0 * _row_products(x, grad_output, target, mean))
                diagonal += sign * (target == torch.arange(length, device=x.device))
        spread = total - 2.0 * (diagonal * x_norms).dot(y_norms) - m.c
        return spread * (length - sketch_size) / ((length - 1) * sketch_size)


def _row_products(x: Tensor, y: Tensor, target: Tensor, mean: Tensor | None) -> Tensor:
    """Return sum_i (x_i . x_t(i)) (y_i . y_t(i)) in float64."""
    total = x.new_zeros((), dtype=torch.float64)
    for rows, tile in tiles(x, mean, x.shape[1] + 2 * y.shape[1]):
        other = x[target[rows]].to(tile.dtype)
        if mean is not None:
            other -= mean.to(tile.dtype)
        products = (tile * other).sum(1, dtype=torch.float64)
        total += products.dot((y[rows].to(tile.dtype) * y[target[rows]].to(tile.dtype)).sum(1, dtype=torch.float64))
    return total
