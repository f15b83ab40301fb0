"""Swap the layers of a model for EXACT's, and back, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch_geometric.nn
from torch.nn import Module

from rmm_gnn.baselines.exact.config import DEFAULT_BITS, DEFAULT_KEPT_FRAC, ExactConfig
from rmm_gnn.baselines.exact.gcn2_conv import ExactGCN2Conv
from rmm_gnn.baselines.exact.layers import (
    ExactBatchNorm1d,
    ExactDropout,
    ExactELU,
    ExactLeakyReLU,
    ExactLinear,
    ExactPyGLinear,
    ExactReLU,
)

# Layers are swapped by changing their class, so that parameters, hooks and every reference to them stay.
SWAPS: dict[type[Module], type[Module]] = {
    torch.nn.Linear: ExactLinear,
    torch_geometric.nn.Linear: ExactPyGLinear,
    torch_geometric.nn.GCN2Conv: ExactGCN2Conv,
    torch.nn.BatchNorm1d: ExactBatchNorm1d,
    torch.nn.ELU: ExactELU,
    torch.nn.ReLU: ExactReLU,
    torch.nn.LeakyReLU: ExactLeakyReLU,
    torch.nn.Dropout: ExactDropout,
}
_ORIGINALS = {swapped: original for original, swapped in SWAPS.items()}
_WITHOUT_CONFIG = (torch.nn.ReLU, torch.nn.LeakyReLU, torch.nn.Dropout)

ModelT = TypeVar("ModelT", bound=Module)


def convert_to_exact(
    model: ModelT,
    kept_frac: float = DEFAULT_KEPT_FRAC,
    bits: int | None = DEFAULT_BITS,
    *,
    module_filter_fn: Callable[[Module, str], bool] | None = None,
) -> ModelT:
    """Make the layers of ``model`` keep what EXACT keeps of them; returns the same model, changed in place.

    Swaps layers whose class is exactly ``torch.nn.Linear``, ``BatchNorm1d``, ``ReLU``, ``LeakyReLU``, ``ELU`` or
    ``Dropout``, or PyG's ``Linear`` or ``GCN2Conv``; subclasses are left alone.  Weights, state_dict keys and hooks
    stay.  Layers that were converted before take the new settings.  Activations that a model calls as functions are
    reached by ``exact_activations``.

    Args:
        model: Any module, also a single layer.
        kept_frac: Share of the features of a product's input to keep, in (0, 1].
        bits: Bits of a kept value: 1, 2, 4, 8, or None to keep the type of the input.
        module_filter_fn: Called with (layer, qualified name) for each candidate; False leaves the layer as it is.

    Returns:
        ``model``.

    Raises:
        ValueError: If a setting is out of range, no layer was selected, or a selected layer has a forward of its own
            (set on the instance), is compiled, or has an attribute ``config`` already.
        TypeError: If a setting is of the wrong type.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(0.1))
        >>> convert_to_exact(model, kept_frac=0.25, bits=4)
        Sequential(
          (0): ExactLinear(in_features=8, out_features=16, bias=True, kept_frac=0.25, bits=4)
          (1): ExactReLU()
          (2): ExactDropout(p=0.1, inplace=False)
        )

    References:
        Z. Liu et al., *EXACT: Scalable Graph Neural Networks Training via Extreme Activation Compression*, ICLR 2022.
    """
    config = ExactConfig(kept_frac, bits)
    swappable = SWAPS.keys() | _ORIGINALS
    candidates = {name: module for name, module in model.named_modules() if type(module) in swappable}
    selected = {
        name: module
        for name, module in candidates.items()
        if module_filter_fn is None or module_filter_fn(module, name)
    }
    if not selected:
        raise ValueError(
            f"'model' must have a layer to convert (got {len(candidates)} candidates, none selected). Candidates "
            "are Linear, BatchNorm1d, ReLU, LeakyReLU, ELU, Dropout, PyG's Linear and GCN2Conv, not their subclasses."
        )
    for name, module in selected.items():
        _check_swappable(module, name or "model")
    for module in selected.values():
        module.__class__ = SWAPS.get(type(module), type(module))
        if _ORIGINALS[type(module)] not in _WITHOUT_CONFIG:
            module.config = config
    return model


def revert_exact(model: ModelT) -> ModelT:
    """Turn every layer of EXACT back into the layer it stands for; returns the same model.

    The parameters stay the same objects.  A model without such layers is returned as it is.
    """
    for module in model.modules():
        original = _ORIGINALS.get(type(module))
        if original is not None:
            module.__class__ = original
            module.__dict__.pop("config", None)
    return model


def _check_swappable(module: Module, name: str) -> None:
    if type(module) in SWAPS and hasattr(module, "config"):
        raise ValueError(
            f"'{name}' must not have an attribute 'config' of its own (got {module.config!r}). "
            "The converted layer keeps its settings there; rename yours."
        )
    own = [key for key in ("forward", "_compiled_call_impl") if module.__dict__.get(key) is not None]
    if own:
        raise ValueError(
            f"'{name}' must run its class's forward (got {own[0]} set on the instance). "
            "Convert the model before wrapping or compiling it, or leave this layer out with module_filter_fn."
        )
