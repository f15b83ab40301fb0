"""What the linear layers share: when a sketch is drawn, and with which seed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module

from rmm_gnn.config import RMMConfig
from rmm_gnn.functional import rmm_linear
from rmm_gnn.nn import _row_norms
from rmm_gnn.seeding import draw_seed


def training_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None,
    *,
    config: RMMConfig,
    training: bool,
    parameter: Tensor,
    layer: Module,
) -> Tensor:  # [*, M]
    """Return x W^T + b; in training with a trainable ``parameter`` behind ``weight``, through a fresh sketch of x.

    The seed is drawn in every training call, also with grad mode off: reentrant checkpointing runs its first pass so,
    and a generator that it does not advance would give the same S at every step.  Where the sketch's family reads them,
    ``layer`` holds the norms of its gradient's rows until the next step.
    """
    if not (training and parameter.requires_grad):
        return F.linear(x, weight, bias)
    if not _row_norms.are_held_for(config):
        return rmm_linear(x, weight, bias, config=config, seed=draw_seed(x))
    row_norms = _row_norms.of_the_step_before(layer, x)
    out = rmm_linear(x, weight, bias, config=config, seed=draw_seed(x), row_norms=row_norms)
    _row_norms.note(layer, out, config.workspace_bytes)
    return out
