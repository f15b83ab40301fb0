"""What lasts from entering a mode to leaving it."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary

from rmm_gnn.config import RMMConfig
from rmm_gnn.context.held import HeldInputs
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sharing import KeptOnce


class ForwardPass:
    """What belongs to one time that a mode is entered.

    Attributes:
        config: What to keep.
        checkpoints: How many checkpointed blocks were running on entry.
    """

    def __init__(self, config: RMMConfig, checkpoints: int, held: tuple[Tensor, ...] = ()) -> None:
        self.config = config
        self._held = HeldInputs(held) if held else None
        self.checkpoints = checkpoints
        # Made when it is needed: torch.compile, which traces the entry, cannot trace the making of this.
        self._readings: WeakIdKeyDictionary | None = None
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

    def sketches(self, x: Tensor, weight: Tensor) -> KeptOnce | None:
        """Return where the sketches are that other weights made of ``x`` since ``weight`` read it last.

        A weight that reads one tensor again, as in every step of a loop within the mode, gets a fresh S.  None where
        readers cannot be told apart: weights that are computed anew at every call.
        """
        owner = weight if weight._base is None else weight._base
        if torch.compiler.is_compiling() or not isinstance(owner, Parameter):
            return None
        reader = id(owner), weight.storage_offset(), weight.shape, weight.stride()
        if self._readings is None:
            self._readings = WeakIdKeyDictionary()
        reading = self._readings.get(x)
        if reading is None or reader in reading.readers:
            reading = self._readings[x] = _Reading()
        reading.readers.add(reader)
        return reading.sketches


class _Reading:
    """The weights that have read a tensor once each, and the sketches they share."""

    def __init__(self) -> None:
        self.readers: set[Hashable] = set()
        self.sketches = KeptOnce()
