"""Tensor-product sketch: one small sketch of the sequences times one of the places in a sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn._validation import check_choice, check_positive_int
from rmm_gnn.kernels import bucket_sum
from rmm_gnn.kernels.reference import accumulation_dtype, gathers_in_place
from rmm_gnn.permutation import permutation
from rmm_gnn.seeding import derived_seed, random_signs
from rmm_gnn.sketches.base import Draw, Sketch, State
from rmm_gnn.sketches.blocks import pair_share
from rmm_gnn.sketches.count_sketch import CountSketch
from rmm_gnn.sketches.grid import REDUCE, Grid, factor_sizes
from rmm_gnn.sketches.grid_moments import grid_variance

_FACTOR = CountSketch()
# Places, bucket starts, row numbers and signs of one position that exist at once.
_BYTES_PER_POSITION = 96


@dataclass(frozen=True)
class KroneckerSketch(Sketch):
    r"""S = S_1 x S_2, a tensor product of balanced count sketches: of n outer rows (batch) and L inner ones (sequence).

    Row bL + l of X is token l of sequence b.  Its bucket is that of b in S_1 [n, k_1] and that of l in S_2 [L, k_2],
    its sign the product of both; k = k_1 k_2.  So S is a permutation and signs of n and of L numbers, not of B = nL,
    and the product is one pass over X, as a count sketch's is.

    *Variance.*  With p the probability that two rows of a factor share a bucket,

    .. math::
        E[(S S^T)_{ij} (S S^T)_{kl}] = \delta_{ij} \delta_{kl} + p (\delta_{ik} \delta_{jl} + \delta_{il} \delta_{jk}
        - 2 \delta_{ijkl})

    for either factor, and the fourth moments of S are products of both.  With :math:`x_{bl}` a row of X, p_1 and p_2 of
    the factors, and a, c, d of ``moments``,

    .. math::
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = \; & p_1 p_2 \, (a + c - 2 a_1 - 2 a_2 + 4 d) \\
        & + p_1 (1 + p_2) (e_1 - 2 c_1) + p_2 (1 + p_1) (e_2 - 2 c_2) + (p_1 + p_2) \, q \\
        a_1 = \sum_b |X_b|^2 |Y_b|^2, \quad & c_1 = \sum_b |X_b^T Y_b|_F^2, \quad
        e_1 = \sum_{lm} \Bigl( \sum_b \langle x_{bl}, x_{bm} \rangle \Bigr)
        \Bigl( \sum_b \langle y_{bl}, y_{bm} \rangle \Bigr) \\
        q = \; & \sum_{bclm} \langle x_{bl}, x_{cm} \rangle \langle y_{bm}, y_{cl} \rangle

    where X_b are the L rows of sequence b, and a_2, c_2, e_2 are a_1, c_1, e_1 with b and l exchanged.  For L = 1 it is
    p_1 (a + c - 2d), the count sketch's.  Else the first line alone is at most (a + c)/k, as of a dense S, and the
    second comes on top: p_1 e_1 is up to a/k_1, where the tokens of a sequence are alike, since all of them meet those
    of another sequence with one and the same sign of S_1.

    *It loses.*  At the same k it was 1.0 to 1.9 times as noisy as ``count_sketch`` (median 1.27) in a pretrained BERT
    of 6 layers (all-MiniLM-L6-v2, fine-tuned on MRPC for 60 steps of 32 sequences; rates 0.5, 0.2, 0.1, centred), and
    in a RoBERTa of 2 layers from random weights 0.7 to 1.1 times (1.04) after 150 steps, 1.0 to 2.3 times (1.36) after
    600.  Compressing and forming the gradient took 1.5 to 2 times as long on CPU (``benchmarks/micro/kronecker.py``).
    One side alone, "outer" or "inner", was less noisy than ``count_sketch`` in some of these networks and noisier in
    others.  What is gained is the factored S.

    ``variance`` takes min(n, L) times the operations of the gradient itself.  Besides vectors of B numbers it forms
    three products [N, M] and, in the accumulation type, 1 / min(n, L) of X and of Y, twice.

    *Sizes.*  Not every k is a product: the sketch has the largest k_1 k_2 up to the size that the config asks for with
    k_1 / n and k_2 / L within a factor of two, or if there is none, 4, 16, ... (below ``min_size``, if need be).  An
    incomplete last sequence, where L does not divide B, is one with zeros.

    *Grid.*  ``rmm_linear``, and so layers and ``compress_activations``, take L from an x of at least three dimensions:
    the last but one.  An x [B, N] has no inner dimension: L = 1, a count sketch.  A grid with holes is none: a
    ``row_mask`` is refused.  Where L is above 1, a call needs 60 (n + L) bytes beyond the workspace.

    Args:
        inner_rows: L, whatever the shape of x; None for that of x.
        reduce: "both", "outer" or "inner": the sides that are reduced; of the other one, no row shares a bucket, as far
            as the size allows.

    Raises:
        ValueError: If ``inner_rows`` is below 1 or ``reduce`` is unknown; if a product is asked for with a size that is
            not ``admissible_size`` of itself.
        TypeError: If ``inner_rows`` is not a whole number, or ``reduce`` no string.

    Example:
        >>> x = torch.randn(8 * 16, 3)
        >>> sketch = KroneckerSketch(inner_rows=16)
        >>> size = sketch.admissible_size(8 * 16, 13)
        >>> size
        12
        >>> s = sketch.to_dense(8 * 16, size, torch.tensor(7))
        >>> torch.allclose(sketch.apply(x, torch.tensor(7), size), s.T @ x, atol=1e-5)
        True

    References:
        D. Bershatsky et al., *Memory-Efficient Backpropagation through Large Linear Layers* (2022), future work.  The
        variance is derived here.
    """

    name: ClassVar[str] = "kronecker"
    backends: ClassVar[tuple[str, ...]] = ("scatter",)
    reads_shape: ClassVar[bool] = True
    inner_rows: int | None = None
    reduce: str = "both"

    def __post_init__(self) -> None:
        object.__setattr__(self, "inner_rows", check_positive_int("inner_rows", self.inner_rows, optional=True))
        check_choice("reduce", self.reduce, REDUCE)

    def for_shape(self, leading_shape: Sequence[int]) -> KroneckerSketch:
        if self.inner_rows is not None or len(leading_shape) < 2:
            return self
        return replace(self, inner_rows=max(1, int(leading_shape[-1])))

    def admissible_size(self, num_rows: int, size: int) -> int:
        first, second = factor_sizes(*self._sides(num_rows), int(size), self.reduce)
        return first * second

    def _sides(self, num_rows: int) -> tuple[int, int]:
        inner = max(1, min(self.inner_rows or 1, int(num_rows)))
        return max(1, -(-int(num_rows) // inner)), inner

    def grid(self, num_rows: int, sketch_size: int) -> Grid:
        """Return n, L, k_1 and k_2 for a matrix of so many rows."""
        outer, inner = self._sides(num_rows)
        first, second = factor_sizes(outer, inner, sketch_size, self.reduce)
        if first * second != sketch_size:
            raise ValueError(
                f"'sketch_size' must be a product of two sizes (got {sketch_size} for {outer} x {inner} rows). "
                f"Take admissible_size({num_rows}, {sketch_size}), {first * second}."
            )
        return Grid(outer, inner, first, second)

    def to_dense(
        self,
        num_rows: int,
        sketch_size: int,
        seed: Tensor,
        *,
        state: State = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        grid = self.grid(num_rows, sketch_size)
        outer, inner = _seeds(seed)
        first = _FACTOR.to_dense(grid.outer, grid.outer_size, outer, dtype=dtype)
        second = _FACTOR.to_dense(grid.inner, grid.inner_size, inner, dtype=dtype)
        return torch.kron(first, second)[:num_rows]

    def sketch_rows(self, matrix: Tensor, draw: Draw, start: int, stop: int) -> Tensor:
        num_rows, num_columns = matrix.shape
        grid, dtype = self.grid(num_rows, draw.sketch_size), accumulation_dtype(matrix.dtype)
        (outer_seed, inner_seed), device = _seeds(draw.seed), draw.seed.device
        inner, inner_signs = permutation(inner_seed, grid.inner), random_signs(inner_seed, 0, grid.inner, dtype)
        row_type = torch.int32 if num_rows < 2**31 else torch.int64
        gathered = 0
        if draw.backend == "scatter" or not gathers_in_place(matrix):
            gathered = num_columns * (dtype.itemsize + matrix.element_size())
        limit = max(1, draw.workspace_bytes // (_BYTES_PER_POSITION + gathered))

        def sums_of(first: int, last: int, begin: int, end: int) -> Tensor:
            low, high = grid.outer_range(begin, end)
            outer_places, inner_places = grid.places(begin, end, device)
            outer_places -= low
            signs = random_signs(outer_seed, low, high, dtype)[outer_places].mul_(inner_signs[inner_places])
            rows = permutation(outer_seed, grid.outer, low, high).long().mul_(grid.inner)[outer_places]
            rows += inner[inner_places]
            if grid.outer * grid.inner > num_rows:  # the rows that are missing in the last sequence
                signs *= rows < num_rows
                rows.clamp_(max=num_rows - 1)
            offsets = grid.starts(first, last, device).sub_(begin).clamp_(min=0)
            return bucket_sum(matrix, rows.to(row_type), signs, offsets.to(row_type), draw.backend)

        tiles = list(grid.tiles(start, stop, limit))
        if len(tiles) == 1:
            return sums_of(*tiles[0])
        out = matrix.new_zeros((stop - start, num_columns), dtype=dtype)
        for first, last, begin, end in tiles:
            out[first - start : last - start] += sums_of(first, last, begin, end)
        return out

    def sketch_ones(self, num_rows: int, draw: Draw, dtype: torch.dtype) -> Tensor:
        grid = self.grid(num_rows, draw.sketch_size)
        if grid.outer * grid.inner > num_rows:
            return super().sketch_ones(num_rows, draw, dtype)
        outer, inner = _seeds(draw.seed)
        first = _FACTOR.sketch_ones(grid.outer, replace(draw, seed=outer, sketch_size=grid.outer_size), dtype)
        second = _FACTOR.sketch_ones(grid.inner, replace(draw, seed=inner, sketch_size=grid.inner_size), dtype)
        return torch.outer(first, second).flatten()

    def variance(
        self,
        x: Tensor,
        grad_output: Tensor,
        sketch_size: int,
        *,
        mean: Tensor | None = None,
        row_norms: Tensor | None = None,
    ) -> Tensor:
        grid = self.grid(x.shape[0], sketch_size)
        shares = pair_share(grid.outer, grid.outer_size), pair_share(grid.inner, grid.inner_size)
        return grid_variance(x, grad_output, mean, (grid.outer, grid.inner), shares)


def _seeds(seed: Tensor) -> tuple[Tensor, Tensor]:
    """Seeds of the factors, which read the same streams of them."""
    return derived_seed(seed, 0), derived_seed(seed, 1)
