"""What lasts from entering a mode to leaving it."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.config import RMMConfig
from rmm_gnn.context.held import HeldInputs
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sharing import SharedSketches


class ForwardPass:
    """What belongs to one time that a mode is entered.

    Attributes:
        config: What to keep.
        checkpoints: How many checkpointed blocks were running on entry.
        sketches: What products that read one tensor share.
        row_mask: The rows to sketch of inputs with its leading shape; None for all.
    """

    def __init__(
        self,
        config: RMMConfig,
        checkpoints: int,
        held: tuple[Tensor, ...] = (),
        row_mask: Tensor | None = None,
    ) -> None:
        self.config = config
        self.row_mask = row_mask
        self._held = HeldInputs(held) if held else None
        self.checkpoints = checkpoints
        self.sketches = SharedSketches()
        self._start = int(draw_seed(torch.empty(0))) if checkpoints else None
        self._generators: dict[torch.device, torch.Generator] = {}

    @property
    def held(self) -> HeldInputs | None:
        """What the caller keeps in any case, and what dropout made of it; None where there is nothing.

        Also None in traced code, which could not look tensors up.
        """
        return None if torch.compiler.is_compiling() else self._held

    def seed(self, like: Tensor) -> Tensor | None:
        """Return the next seed of a sketch in a checkpointed block; elsewhere None, and the product draws its own.

        The first pass over a block may run without grad mode, where a weight that is computed from others does not show
        that it needs a gradient, so which products draw is not the same in both passes.  They must not draw from the
        generator that dropout draws from.
        """
        if self._start is None:
            return None
        if like.device not in self._generators:
            self._generators[like.device] = torch.Generator(like.device).manual_seed(self._start)
        return draw_seed(like, self._generators[like.device])

    def row_mask_for(self, x: Tensor) -> Tensor | None:
        """Return the mask if it has a number for each row of ``x`` [*, N], in the same shape; None elsewhere."""
        return self.row_mask if self.row_mask is not None and self.row_mask.shape == x.shape[:-1] else None
