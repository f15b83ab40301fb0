"""Row sampling with probabilities from the rows' norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn._validation import check_share
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.sketches.base import DEFAULT_WORKSPACE_BYTES, State
from rmm_gnn.sketches.moments import moments
from rmm_gnn.sketches.sampled_rows import SampledRows, draw_rows, mixed_with_uniform, row_norms_of


@dataclass(frozen=True)
class NormSamplingSketch(SampledRows):
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
    uniform_share: float = 0.1

    def __post_init__(self) -> None:
        check_share("uniform_share", self.uniform_share)

    def probabilities(
        self, x: Tensor, mean: Tensor | None, workspace_bytes: int, rows: Tensor | None = None
    ) -> Tensor:  # [B], float64
        """Return q for the rows of x, or of x less ``mean`` [N] where it is given; needs 40 bytes a row."""
        norms = row_norms_of(x, mean, workspace_bytes, rows)
        return mixed_with_uniform(norms, self.uniform_share, norms.shape[0])

    def prepare(
        self,
        x: Tensor,
        mean: Tensor | None,
        seed: Tensor,
        sketch_size: int,
        workspace_bytes: int,
        row_norms: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> State:
        q = self.probabilities(x, mean, workspace_bytes, rows)
        drawn = draw_rows(q, seed, torch.arange(sketch_size, device=x.device))
        factors = (q[drawn] * sketch_size).rsqrt_().to(accumulation_dtype(x.dtype))
        return drawn.to(torch.int32), factors

    def variance(
        self,
        x: Tensor,
        grad_output: Tensor,
        sketch_size: int,
        *,
        mean: Tensor | None = None,
        row_norms: Tensor | None = None,
    ) -> Tensor:
        q = self.probabilities(x, mean, DEFAULT_WORKSPACE_BYTES)
        x_norms = row_norms_of(x, mean, DEFAULT_WORKSPACE_BYTES)
        y_norms = row_norms_of(grad_output, None, DEFAULT_WORKSPACE_BYTES)
        weighted = (x_norms.square() * y_norms.square() / q).sum()
        return (weighted - moments(x, grad_output, mean).c) / sketch_size
