"""The root-mean-square norms of transformers that keep their normalised input in a codec: drop-ins.

Every model of transformers has a class of its own with the code of Llama's or of T5's.  Those listed here get a
subclass ``Lean<name>`` each, made when it is asked for, so that no model is imported which is not in use.  Outputs are
the same in float32; in lower types they agree up to rounding, which is done once, after the weight.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module

import rmm_gnn.functional as lean
from rmm_gnn.nn.lean import LeanModule

_MODELS = "transformers.models"
_LIKE_LLAMA = {
    "LlamaRMSNorm": f"{_MODELS}.llama.modeling_llama",
    "MistralRMSNorm": f"{_MODELS}.mistral.modeling_mistral",
    "MixtralRMSNorm": f"{_MODELS}.mixtral.modeling_mixtral",
    "Phi3RMSNorm": f"{_MODELS}.phi3.modeling_phi3",
    "Qwen2RMSNorm": f"{_MODELS}.qwen2.modeling_qwen2",
    "Qwen3RMSNorm": f"{_MODELS}.qwen3.modeling_qwen3",
}
_LIKE_T5 = {
    "T5LayerNorm": f"{_MODELS}.t5.modeling_t5",
    "LongT5LayerNorm": f"{_MODELS}.longt5.modeling_longt5",
    "MT5LayerNorm": f"{_MODELS}.mt5.modeling_mt5",
    "UMT5LayerNorm": f"{_MODELS}.umt5.modeling_umt5",
}
_HOMES = _LIKE_LLAMA | _LIKE_T5


class _LeanRMSNorm(LeanModule):
    """What the lean norms share; their other base has ``weight`` and ``variance_epsilon``."""

    weight: Tensor
    variance_epsilon: float

    def _normalized(self, x: Tensor) -> Tensor:
        return lean.rms_norm(
            x,
            self.weight.shape,
            self.weight,
            self.variance_epsilon,
            codec=self.config.norm_codec,
            backend=self.config.backend,
        )

    def extra_repr(self) -> str:
        settings = super().extra_repr()
        return f"{settings}, " * bool(settings) + f"norm_codec={self.config.norm_codec!r}"


class _LikeLlama(_LeanRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training:
            return super().forward(hidden_states)
        return self._normalized(hidden_states.to(torch.promote_types(hidden_states.dtype, self.weight.dtype)))


class _LikeT5(_LeanRMSNorm):
    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training:
            return super().forward(hidden_states)
        dtype = self.weight.dtype
        if dtype in (torch.float16, torch.bfloat16):
            return self._normalized(hidden_states).to(dtype)
        return self._normalized(hidden_states.to(torch.promote_types(hidden_states.dtype, dtype)))


@cache
def lean_norm(stock: type[Module]) -> type[Module]:
    """The lean subclass of one of the norms."""
    base = _LikeLlama if stock.__name__ in _LIKE_LLAMA else _LikeT5
    described = f"``{stock.__name__}`` of transformers that keeps its normalised input in ``config.norm_codec``."
    namespace = {"__module__": __name__, "__doc__": described, "stands_for": stock}
    return cast("type[Module]", type(f"Lean{stock.__name__}", (base, stock), namespace))


def lean_norms() -> dict[type[Module], type[Module]]:
    """The norms of models that are imported, and what takes their place."""
    stock = [getattr(sys.modules[home], name) for name, home in _HOMES.items() if home in sys.modules]
    # A faster norm of another library may stand under the name.
    return {norm: lean_norm(norm) for norm in stock if norm.__module__ in _HOMES.values()}


def __getattr__(name: str) -> Any:
    """Pickled layers are looked up by name."""
    home = _HOMES.get(name.removeprefix("Lean"))
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return lean_norm(getattr(import_module(home), name.removeprefix("Lean")))
