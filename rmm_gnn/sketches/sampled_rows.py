"""What the families that draw rows by weight share: the state they keep, and the norms that weights are made of."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of, numbers, tile
from rmm_gnn.seeding import Stream, uniform
from rmm_gnn.sketches.base import Draw, Sketch, State

# On CPU, tiles that stay in the cache take a thirtieth of the time of fresh memory.
_CPU_TILE_BYTES = 1 << 20


class SampledRows(Sketch):
    """A family whose sketch rows are rows of the matrix times a factor; both are kept as (rows, factors).

    Rows are int32, factors float32, or float64 for float64 x: 8 or 12 bytes a sketch row.
    """

    reads_every_row: ClassVar[bool] = False
    selects_rows: ClassVar[bool] = True

    def empty_state(self, num_rows: int, sketch_size: int, dtype: torch.dtype, device: torch.device) -> State:
        rows = torch.empty(sketch_size, dtype=torch.int32, device=device)
        return rows, torch.empty(sketch_size, dtype=accumulation_dtype(dtype), device=device)

    def to_dense(
        self,
        num_rows: int,
        sketch_size: int,
        seed: Tensor,
        *,
        state: State = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        rows, factors = state
        dense = torch.zeros(num_rows, sketch_size, dtype=dtype, device=seed.device)
        dense[rows.long(), torch.arange(sketch_size, device=seed.device)] = factors.to(dtype)
        return dense

    def sketch_rows(self, matrix: Tensor, draw: Draw, start: int, stop: int) -> Tensor:
        rows, factors = draw.state
        out = matrix.new_empty((stop - start, matrix.shape[1]), dtype=accumulation_dtype(matrix.dtype))
        height = max(1, draw.workspace_bytes // (16 + matrix.shape[1] * matrix.element_size()))
        for begin in range(start, stop, height):
            end = min(begin + height, stop)
            out[begin - start : end - start] = matrix.index_select(0, numbers(draw.rows, rows[begin:end]))
        return out.mul_(factors[start:stop].to(out.dtype).unsqueeze(1))


def mixed_with_uniform(
    weights: Tensor,  # [B], float64; overwritten
    uniform_share: float,
    num_rows: int | Tensor,
) -> Tensor:  # [B]
    """Return (1 - ``uniform_share``) of the weights over their sum, and the uniform share spread over ``num_rows``."""
    total = weights.sum()
    ones = torch.ones_like(total)
    # All weights zero: the sampling is uniform.
    share = torch.where(total > 0, ones * uniform_share, ones)
    weights.div_(torch.where(total > 0, total, ones))
    return weights.mul_(1.0 - share).add_(share / num_rows)


def draw_rows(q: Tensor, seed: Tensor, index: Tensor) -> Tensor:  # [B], [], [k] -> [k] int64
    """Draw for each entry of ``index`` a row with probability proportional to q."""
    draws = uniform(seed, Stream.SAMPLING, index)
    cumulative = q.cumsum(0)
    return torch.searchsorted(cumulative, draws.mul_(cumulative[-1]), right=True).clamp_(max=q.shape[0] - 1)


def row_norms_of(
    matrix: Tensor,  # [B, N]
    mean: Tensor | None,
    workspace_bytes: int,
    rows: Tensor | None = None,
) -> Tensor:  # [B], float64
    """Return the norm of every row of ``matrix``, or of its ``rows``, or of these less the row ``mean``."""
    norms = matrix.new_empty(count_of(matrix, rows), dtype=torch.float64)
    tile_bytes = workspace_bytes if matrix.is_cuda else min(workspace_bytes, _CPU_TILE_BYTES)
    height = max(1, tile_bytes // (2 * max(1, matrix.shape[1]) * norms.element_size()))
    for start in range(0, norms.shape[0], height):
        # Squares of float32 values above 2^64 overflow in float32.
        part = tile(matrix, rows, start, min(start + height, norms.shape[0])).double()
        norms[start : start + height] = torch.linalg.vector_norm(part if mean is None else part - mean, dim=1)
    return norms
