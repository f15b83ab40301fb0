"""Row sampling with probabilities from the rows' norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn._validation import check_share
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.seeding import Stream, uniform
from rmm_gnn.sketches.base import DEFAULT_WORKSPACE_BYTES, Draw, Sketch, State
from rmm_gnn.sketches.moments import moments


@dataclass(frozen=True)
class NormSamplingSketch(Sketch):
    r"""Draw k rows with replacement, row i with probability q_i, and divide it by :math:`\sqrt{k q_i}`.

    .. math::
        q_i = (1 - \epsilon) \frac{|x_i|}{\sum_j |x_j|} + \frac{\epsilon}{B}, \qquad
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = \frac{1}{k} \Bigl( \sum_i \frac{|x_i|^2 |y_i|^2}{q_i} - c \Bigr)

    with c of ``moments``.  The uniform share keeps every q_i at least ``uniform_share / B``: a row of small norm that
    is never drawn would bias the estimate.  S depends on x, so the drawn rows (int32) and their factors (float32, or
    float64 for float64 x) are kept: 8 or 12 bytes a sketch row.

    Transient memory: 40 bytes a row for q, whatever the workspace.

    Args:
        uniform_share: epsilon, the weight of the uniform part, in (0, 1].

    Raises:
        ValueError: If ``uniform_share`` is outside (0, 1].
        TypeError: If ``uniform_share`` is not a number.

    References:
        P. Drineas, R. Kannan, M. Mahoney, *Fast Monte Carlo Algorithms for Matrices I*, 2006.
        M. Adelman et al., *Faster Neural Network Training with Approximate Tensor Operations*, 2021.
    """

    name: ClassVar[str] = "norm_sampling"
    reads_every_row: ClassVar[bool] = False
    uniform_share: float = 0.1

    def __post_init__(self) -> None:
        check_share("uniform_share", self.uniform_share)

    def probabilities(self, x: Tensor, mean: Tensor | None, workspace_bytes: int) -> Tensor:  # [B], float64
        """Return q for the rows of x, or of x less ``mean`` [N] where it is given; needs 40 bytes a row."""
        norms = _row_norms(x, mean, workspace_bytes)
        total = norms.sum()
        ones = torch.ones_like(total)
        weights = norms / torch.where(total > 0, total, ones)
        # All rows zero: the sampling is uniform.
        share = torch.where(total > 0, ones * self.uniform_share, ones)
        return weights.mul_(1.0 - share).add_(share / x.shape[0])

    def prepare(self, x: Tensor, mean: Tensor | None, seed: Tensor, sketch_size: int, workspace_bytes: int) -> State:
        q = self.probabilities(x, mean, workspace_bytes)
        draws = uniform(seed, Stream.SAMPLING, torch.arange(sketch_size, device=x.device))
        cumulative = q.cumsum(0)
        rows = torch.searchsorted(cumulative, draws.mul_(cumulative[-1]), right=True).clamp_(max=x.shape[0] - 1)
        factors = (q[rows] * sketch_size).rsqrt_().to(accumulation_dtype(x.dtype))
        return rows.to(torch.int32), factors

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
            out[begin - start : end - start] = matrix.index_select(0, rows[begin:end])
        return out.mul_(factors[start:stop].to(out.dtype).unsqueeze(1))

    def variance(self, x: Tensor, grad_output: Tensor, sketch_size: int, *, mean: Tensor | None = None) -> Tensor:
        q = self.probabilities(x, mean, DEFAULT_WORKSPACE_BYTES)
        x_norms = _row_norms(x, mean, DEFAULT_WORKSPACE_BYTES)
        y_norms = _row_norms(grad_output, None, DEFAULT_WORKSPACE_BYTES)
        weighted = (x_norms.square() * y_norms.square() / q).sum()
        return (weighted - moments(x, grad_output, mean).c) / sketch_size


def _row_norms(x: Tensor, mean: Tensor | None, workspace_bytes: int) -> Tensor:  # [B], float64
    norms = x.new_empty(x.shape[0], dtype=torch.float64)
    height = max(1, workspace_bytes // (2 * x.shape[1] * norms.element_size()))
    for start in range(0, x.shape[0], height):
        # Squares of float32 values above 2^64 overflow in float32.
        tile = x[start : start + height].double()
        norms[start : start + height] = torch.linalg.vector_norm(tile if mean is None else tile - mean, dim=1)
    return norms
