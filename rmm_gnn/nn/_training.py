"""What the linear layers share: when a sketch is drawn, and with which seed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.config import RMMConfig
from rmm_gnn.functional import rmm_linear
from rmm_gnn.seeding import draw_seed


def training_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None,
    *,
    config: RMMConfig,
    training: bool,
    parameter: Tensor,
) -> Tensor:  # [*, M]
    """Return x W^T + b; in training with a trainable ``parameter`` behind ``weight``, through a fresh sketch of x.

    The seed is drawn in every training call, also with grad mode off: reentrant checkpointing runs its first pass so,
    and a generator that it does not advance would give the same S at every step.
    """
    if not (training and parameter.requires_grad):
        return F.linear(x, weight, bias)
    return rmm_linear(x, weight, bias, config=config, seed=draw_seed(x))
