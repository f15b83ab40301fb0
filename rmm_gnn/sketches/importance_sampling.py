"""Row sampling with probabilities from the rows' norms and those of the gradient one step before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from rmm_gnn._validation import check_share, check_top_share
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.permutation import permutation
from rmm_gnn.sketches.base import DEFAULT_WORKSPACE_BYTES, State
from rmm_gnn.sketches.moments import tiles
from rmm_gnn.sketches.sampled_rows import SampledRows, draw_rows, mixed_with_uniform, row_norms_of


class Chances(NamedTuple):
    """How rows get into the sketch.

    Attributes:
        q: Probability of each row in one draw [B], float64; 0 for a row that is kept with certainty.
        top: Rows of largest weight [m], of which the first ``num_certain`` are kept with certainty.
        num_certain: C, an int64 scalar tensor.
    """

    q: Tensor
    top: Tensor
    num_certain: Tensor


@dataclass(frozen=True)
class ImportanceSamplingSketch(SampledRows):
    r"""Draw rows by weights :math:`w_i = |x_i| n_i`, with n_i the norm of row i of ``grad_output`` a step ago.

    The variance of row sampling is least for probabilities :math:`q_i \sim |x_i| |y_i|`, but y_i is not known in
    forward.  Where every step sees the same rows, as in full-batch training, the norms n_i of the step before stand in
    for :math:`|y_i|`.

    C rows T of largest weight are kept as they are, with certainty; the other k - C rows of the sketch are drawn with
    replacement from the rest R of the rows and divided by :math:`\sqrt{(k - C) q_i}`:

    .. math::
        q_i = (1 - \epsilon) \frac{w_i}{\sum_{j \in R} w_j} + \frac{\epsilon}{B - C}, \qquad
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = \frac{1}{k - C} \Bigl( \sum_{i \in R} \frac{|x_i|^2 |y_i|^2}{q_i}
        - | X_R^T Y_R |^2 \Bigr)

    C is what makes :math:`(\sum_R w_j)^2 / (k - C)` least, at most ``top_share`` k and k - 1; 0 for weights that are
    nearly equal.

    The estimate is unbiased whatever the norms are: they may be old, or zero for rows that have a gradient now, since
    every q_i is at least ``uniform_share / B``.  Bad norms cost variance: B d / (k epsilon (1 - ``top_share``)) at
    most, where uniform sampling has (B d - c) / k, with c and d of ``moments``.  So this family is for full-batch
    training; where every step brings other rows, use ``NormSamplingSketch``.

    Layers of ``rmm_gnn.nn`` hold the norms from one step to the next: 2 B bytes in bfloat16, 4 B between backward and
    the next forward pass, besides what ``RMMConfig.saved_bytes`` counts.  They are not in ``state_dict``.
    ``rmm_linear`` takes norms as ``row_norms``.  Without norms this family is ``NormSamplingSketch``: in a layer's
    first step, also after loading a checkpoint; where the number of rows or the device has changed; where a weight is
    not finite, or all are zero; in code that ``torch.compile`` traces or a CUDA graph captures; and in functions under
    ``compress_activations``, which have no layer to hold them.

    As in ``NormSamplingSketch``, rows and factors are kept, 8 or 12 bytes a sketch row.  Transient memory: 80 bytes a
    row, whatever the workspace.

    Args:
        uniform_share: epsilon, the weight of the uniform part, in (0, 1].
        top_share: Largest share of the sketch that rows kept with certainty may take, in [0, 1).

    Raises:
        ValueError: If a share is out of range.
        TypeError: If a share is not a number.

    References:
        P. Drineas, R. Kannan, M. Mahoney, *Fast Monte Carlo Algorithms for Matrices I*, 2006 (the best q).
        Z. Liu et al., *Winner-Take-All Column Row Sampling for Memory Efficient Adaptation of Language Model*, 2023
        (the certain part, and norms of an earlier gradient).
    """

    name: ClassVar[str] = "importance_sampling"
    reads_row_norms: ClassVar[bool] = True
    uniform_share: float = 0.2
    top_share: float = 0.5

    def __post_init__(self) -> None:
        check_share("uniform_share", self.uniform_share)
        check_top_share("top_share", self.top_share)

    def chances(
        self,
        x: Tensor,
        mean: Tensor | None,
        row_norms: Tensor | None,
        sketch_size: int,
        workspace_bytes: int,
        rows: Tensor | None = None,
    ) -> Chances:
        """Return how the rows of x, or of x less ``mean``, get into the sketch, given the norms of Y's rows or not.

        Where ``rows`` of x are selected, norms are theirs, and the rows of the result are numbers among them.
        """
        weights = row_norms_of(x, mean, workspace_bytes, rows)
        num_rows = weights.shape[0]
        most = 0 if row_norms is None else min(int(self.top_share * sketch_size), sketch_size - 1)
        known = torch.zeros((), dtype=torch.bool, device=x.device)
        if row_norms is not None:
            products = weights * row_norms
            total = products.sum()
            known = (total > 0) & (total < torch.inf) & (products.amin() >= 0)
            weights = torch.where(known, products, weights)
        if most == 0:
            none = torch.zeros((), dtype=torch.int64, device=x.device)
            return Chances(mixed_with_uniform(weights, self.uniform_share, num_rows), none.new_empty(0), none)
        largest, top = weights.topk(most)
        num_certain = torch.where(known, _best_count(weights.sum(), largest, sketch_size), 0)
        certain = torch.arange(most, device=x.device) < num_certain
        weights.scatter_(0, top, largest.masked_fill_(certain, 0.0))
        q = mixed_with_uniform(weights, self.uniform_share, num_rows - num_certain)
        # The uniform part, too, is for the rest alone.
        return Chances(q.scatter_(0, top, q[top].masked_fill_(certain, 0.0)), top, num_certain)

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
        q, top, num_certain = self.chances(x, mean, row_norms, sketch_size, workspace_bytes, rows)
        dtype = accumulation_dtype(x.dtype)
        if top.shape[0] == 0:
            drawn = draw_rows(q, seed, torch.arange(sketch_size, device=x.device))
            return drawn.to(torch.int32), (q[drawn] * sketch_size).rsqrt_().to(dtype)
        # In random order: whoever looks at a part of the sketch's rows finds certain ones among them as often.
        index = permutation(seed, sketch_size).long()
        drawn = draw_rows(q, seed, index)
        certain = index < num_certain
        chosen = torch.where(certain, top[index.clamp(max=top.shape[0] - 1)], drawn)
        factors = (q[drawn] * (sketch_size - num_certain)).rsqrt_().masked_fill_(certain, 1.0)
        return chosen.to(torch.int32), factors.to(dtype)

    def variance(
        self,
        x: Tensor,
        grad_output: Tensor,
        sketch_size: int,
        *,
        mean: Tensor | None = None,
        row_norms: Tensor | None = None,
    ) -> Tensor:
        q, _, num_certain = self.chances(x, mean, row_norms, sketch_size, DEFAULT_WORKSPACE_BYTES)
        weighted = torch.zeros_like(q[0])
        product = x.new_zeros((x.shape[1], grad_output.shape[1]), dtype=torch.float64)
        for rows, tile in tiles(x, mean, grad_output.shape[1]):
            drawn = (q[rows] > 0).to(tile.dtype).unsqueeze(1)
            y_tile = grad_output[rows].to(tile.dtype) * drawn
            squares = row_norms_of(tile, None, DEFAULT_WORKSPACE_BYTES) * row_norms_of(
                y_tile, None, DEFAULT_WORKSPACE_BYTES
            )
            weighted += (squares.square_() / q[rows].masked_fill(q[rows] == 0, 1.0)).sum()
            product += tile.T @ y_tile
        return (weighted - product.square().sum()) / (sketch_size - num_certain)


def _best_count(total: Tensor, largest: Tensor, sketch_size: int) -> Tensor:  # [], [m] descending -> []
    """Return the C in [0, m] for which (sum of all weights but the C largest)^2 / (k - C) is least."""
    # As shares: squares of large float64 weights would overflow.
    rest = 1.0 - torch.nn.functional.pad(largest.cumsum(0).div_(total), (1, 0)).clamp_(max=1.0)
    left = sketch_size - torch.arange(rest.shape[0], device=rest.device)
    return (rest.square_() / left).argmin()
