"""The activation modules of transformers that keep a few bits: drop-ins.

In training, those that transformers spells out as a formula are computed as one function of PyTorch, which agrees with
the formula up to rounding; in ``eval()`` they are the formula.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn import Module

import rmm_gnn.functional as lean
from rmm_gnn.nn.lean import LeanActivation

try:
    from transformers.activations import (
        AccurateGELUActivation,
        FastGELUActivation,
        GELUActivation,
        GELUTanh,
        NewGELUActivation,
        QuickGELUActivation,
        SiLUActivation,
    )
except ImportError as error:
    raise ImportError(
        "The activations of transformers need it, and it is not installed. Run: pip install -e '.[transformers]'"
    ) from error


class LeanGELUActivation(LeanActivation, GELUActivation):
    """GELU, ``"gelu"`` of transformers, that keeps its derivative in ``config.act_codec``."""

    stands_for: ClassVar[type[Module]] = GELUActivation

    def forward(self, input: Tensor) -> Tensor:
        return (
            lean.gelu(input, codec=self.config.act_codec, backend=self.config.backend)
            if self.training
            else super().forward(input)
        )


class _LeanGELUTanh(LeanActivation):
    """What the spellings of GELU by a hyperbolic tangent share."""

    def forward(self, input: Tensor) -> Tensor:
        return (
            lean.gelu(input, "tanh", codec=self.config.act_codec, backend=self.config.backend)
            if self.training
            else super().forward(input)
        )


class LeanGELUTanh(_LeanGELUTanh, GELUTanh):
    """``"gelu_pytorch_tanh"`` of transformers, that keeps its derivative in ``config.act_codec``."""

    stands_for: ClassVar[type[Module]] = GELUTanh


class LeanNewGELUActivation(_LeanGELUTanh, NewGELUActivation):
    """``"gelu_new"`` of transformers (GPT-2, T5), that keeps its derivative in ``config.act_codec``."""

    stands_for: ClassVar[type[Module]] = NewGELUActivation


class LeanFastGELUActivation(_LeanGELUTanh, FastGELUActivation):
    """``"gelu_fast"`` of transformers, that keeps its derivative in ``config.act_codec``."""

    stands_for: ClassVar[type[Module]] = FastGELUActivation


class LeanAccurateGELUActivation(_LeanGELUTanh, AccurateGELUActivation):
    """``"gelu_accurate"`` of transformers, that keeps its derivative in ``config.act_codec``."""

    stands_for: ClassVar[type[Module]] = AccurateGELUActivation


class LeanQuickGELUActivation(LeanActivation, QuickGELUActivation):
    """x sigmoid(1.702 x), ``"quick_gelu"`` of transformers, that keeps its derivative in ``config.act_codec``."""

    stands_for: ClassVar[type[Module]] = QuickGELUActivation

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return lean.silu(1.702 * input, codec=self.config.act_codec, backend=self.config.backend) / 1.702


class LeanSiLUActivation(LeanActivation, SiLUActivation):
    """SiLU of transformers, that keeps its derivative in ``config.act_codec``."""

    stands_for: ClassVar[type[Module]] = SiLUActivation

    def forward(self, input: Tensor) -> Tensor:
        return (
            lean.silu(input, codec=self.config.act_codec, backend=self.config.backend)
            if self.training
            else super().forward(input)
        )


LEAN_ACTIVATIONS: dict[type[Module], type[Module]] = {
    lean_class.stands_for: lean_class
    for lean_class in (
        LeanGELUActivation,
        LeanGELUTanh,
        LeanNewGELUActivation,
        LeanFastGELUActivation,
        LeanAccurateGELUActivation,
        LeanQuickGELUActivation,
        LeanSiLUActivation,
    )
}
