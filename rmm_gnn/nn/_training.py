"""What the linear layers share: when a sketch is drawn, and with which seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from rmm_gnn.config import RMMConfig
from rmm_gnn.functional import rmm_linear
from rmm_gnn.functional.attention import is_kept_by_attention
from rmm_gnn.functional.held import held_linear
from rmm_gnn.nn import _row_norms
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sharing import SharedSketches, note_of_held


def training_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None,
    *,
    config: RMMConfig,
    training: bool,
    parameter: Tensor,
    layer: Module,
    sketches: SharedSketches | None = None,
    row_mask: Tensor | None = None,  # [*]
) -> Tensor:  # [*, M]
    """Return x W^T + b; in training with a trainable ``parameter`` behind ``weight``, through a fresh sketch of x.

    The seed is drawn in every training call, also with grad mode off: reentrant checkpointing runs its first pass so,
    and a generator that it does not advance would give the same S at every step.  Where the sketch's family reads them,
    ``layer`` holds the norms of its gradient's rows until the next step.  With a ``row_mask``, the rows that it marks
    are sketched, and no others.

    An x that fused attention keeps in any case is kept with it, for nothing, and the product is exact.
    """
    if not (training and parameter.requires_grad):
        return F.linear(x, weight, bias)
    seed = draw_seed(x)
    if torch.is_grad_enabled() and is_kept_by_attention(x):
        return note_of_held(held_linear(x, weight, bias))
    if not _row_norms.are_held_for(config):
        reading = None if sketches is None else sketches.of(x, weight)
        if reading is not None:
            seed = reading.seed(seed)
        return rmm_linear(x, weight, bias, config=config, seed=seed, shared=reading, row_mask=row_mask)
    row_norms = _row_norms.of_the_step_before(layer, x)
    out = rmm_linear(x, weight, bias, config=config, seed=seed, row_norms=row_norms, row_mask=row_mask)
    _row_norms.note(layer, out, config.workspace_bytes)
    return out
