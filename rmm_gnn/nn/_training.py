"""What the linear layers share: when a sketch is drawn, and with which seed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.config import RMMConfig
from rmm_gnn.functional import rmm_linear
from rmm_gnn.functional.attention import is_kept_by_attention
from rmm_gnn.functional.held import held_linear
from rmm_gnn.nn import _row_norms
from rmm_gnn.row_masks import CurrentRowMask
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sharing import SharedSketches, note_of_held


class SketchingLayer:
    """What a layer that keeps sketches has besides what it is: settings, and what its model shares.

    Attributes:
        config: What to keep.
        sketches: Where layers that read one tensor find each other's sketch; every layer makes its own where it is
            None.
        row_masks: Which rows are sketched; all where it is None.
    """

    config: RMMConfig
    sketches: SharedSketches | None = None
    row_masks: CurrentRowMask | None = None
    training: bool  # of torch.nn.Module


def training_linear(
    layer: SketchingLayer,
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None,
    *,
    parameter: Tensor,
) -> Tensor:  # [*, M]
    """Return x W^T + b of ``layer``; in training with a trainable ``parameter`` behind ``weight``, by a fresh sketch.

    The seed is drawn in every training call, also with grad mode off: reentrant checkpointing runs its first pass so,
    and a generator that it does not advance would give the same S at every step.  Where the sketch's family reads them,
    the layer holds the norms of its gradient's rows until the next step.

    An x that fused attention keeps in any case is kept with it, for nothing, and the product is exact.
    """
    if not (layer.training and parameter.requires_grad):
        return F.linear(x, weight, bias)
    config, sketches = layer.config, layer.sketches
    seed = draw_seed(x)
    row_mask = None if layer.row_masks is None else layer.row_masks.of(x)
    if torch.is_grad_enabled() and is_kept_by_attention(x):
        return note_of_held(held_linear(x, weight, bias))
    if not _row_norms.are_held_for(config, x):
        reading = None if sketches is None else sketches.of(x, weight)
        if reading is not None:
            seed = reading.seed(seed)
        return rmm_linear(x, weight, bias, config=config, seed=seed, shared=reading, row_mask=row_mask)
    row_norms = _row_norms.of_the_step_before(layer, x)
    out = rmm_linear(x, weight, bias, config=config, seed=seed, row_norms=row_norms, row_mask=row_mask)
    _row_norms.note(layer, out, config.workspace_bytes)
    return out
