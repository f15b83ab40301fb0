"""Swap the linear layers of a model for ones that keep sketches, and back, in place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
import torch_geometric.nn
from torch.nn import Module

from rmm_gnn._validation import check_bool, check_pattern
from rmm_gnn.config import RMMConfig
from rmm_gnn.nn import (
    LeanBatchNorm1d,
    LeanBatchNorm2d,
    LeanBatchNorm3d,
    LeanDropout,
    LeanELU,
    LeanGELU,
    LeanLayerNorm,
    LeanLeakyReLU,
    LeanReLU,
    LeanRMSNorm,
    LeanSiLU,
    RMMGCN2Conv,
    RMMLinear,
    RMMTorchLinear,
)
from rmm_gnn.nn._row_norms import forget
from rmm_gnn.row_masks import remove_mask_hooks
from rmm_gnn.wrapped import change_class, class_behind

# A layer is swapped by changing its class: parameters, buffers, hooks, cached adjacencies and every reference to the
# layer stay what they are, so optimizers, tied weights and shared layers need no care.  The RMM classes add one
# attribute, ``config``, and override ``forward``.
SWAPS: dict[type[Module], type[Module]] = {
    torch.nn.Linear: RMMTorchLinear,
    torch_geometric.nn.Linear: RMMLinear,
    torch_geometric.nn.GCN2Conv: RMMGCN2Conv,
}
# What ``lean=True`` swaps besides.
LEAN_SWAPS: dict[type[Module], type[Module]] = {
    torch.nn.ReLU: LeanReLU,
    torch.nn.LeakyReLU: LeanLeakyReLU,
    torch.nn.Dropout: LeanDropout,
    torch.nn.GELU: LeanGELU,
    torch.nn.SiLU: LeanSiLU,
    torch.nn.ELU: LeanELU,
    torch.nn.BatchNorm1d: LeanBatchNorm1d,
    torch.nn.BatchNorm2d: LeanBatchNorm2d,
    torch.nn.BatchNorm3d: LeanBatchNorm3d,
    torch.nn.LayerNorm: LeanLayerNorm,
    torch.nn.RMSNorm: LeanRMSNorm,
}
_ALL_SWAPS = SWAPS | LEAN_SWAPS
_ORIGINALS = {swapped: original for original, swapped in _ALL_SWAPS.items()}

FilterFn = Callable[[Module, str], "bool | RMMConfig"]
ModelT = TypeVar("ModelT", bound=Module)


def convert_to_rmm(
    model: ModelT,
    config: RMMConfig | Mapping[str, RMMConfig | None],
    *,
    module_filter_fn: FilterFn | None = None,
    lean: bool = False,
) -> ModelT:
    """Make the linear layers of ``model`` keep sketches of their inputs; returns the same model, changed in place.

    Swaps layers whose class is exactly ``torch.nn.Linear``, ``torch_geometric.nn.Linear`` (through which GCNConv,
    SAGEConv, GATConv and most of PyG are covered) or ``GCN2Conv``.  Subclasses are left alone, since their forward may
    differ; parametrised layers are such.  Layers that keep sketches already take the new config, so converting twice is
    converting once.  Parameters, state_dict keys and hooks stay.  Swap before ``torch.compile``; before or after
    ``DistributedDataParallel``, whose layers have names that begin with ``module.``, and ``fully_shard``.

    Args:
        model: Any module, also a single layer.
        config: One config for all layers; or a mapping from regular expressions to configs, the first that matches a
            layer's whole qualified name decides, and None or no match leaves it exact.
        module_filter_fn: Called with (layer, qualified name) for each candidate; False leaves the layer as it is, True
            takes ``config``, and an ``RMMConfig`` is used in its place.
        lean: Also swap ReLU, LeakyReLU, ELU, GELU, SiLU, Dropout, BatchNorm, LayerNorm and RMSNorm modules of PyTorch
            for ones that keep a few bits (``rmm_gnn.nn.Lean*``).  Models that call functions instead, such as
            ``F.relu``, are reached by ``compress_activations``.

    Returns:
        ``model``.

    Raises:
        TypeError: If ``config`` is neither a config nor a mapping to configs, or the filter returns something else.
        ValueError: If no layer was selected, a pattern of the mapping is invalid or matches no candidate, or a selected
            layer has a forward of its own (set on the instance), is compiled, or has an attribute ``config`` already.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> convert_to_rmm(model, {"0": RMMConfig(rate=0.1)})
        Sequential(
          (0): RMMTorchLinear(in_features=8, out_features=16, bias=True, rate=0.1)
          (1): ReLU()
          (2): Linear(in_features=16, out_features=2, bias=True)
        )
    """
    if not isinstance(config, RMMConfig | Mapping):
        raise TypeError(
            f"'config' must be an RMMConfig or a mapping of name patterns to them (got {type(config).__name__}). "
            "Write RMMConfig(rate=0.1)."
        )
    check_bool("lean", lean)
    swaps = _ALL_SWAPS if lean else SWAPS
    # Lean modules take the new config too, as layers that keep sketches do.
    swappable = swaps.keys() | _ORIGINALS
    # A layer that is shared goes by all of its names.
    named = list(model.named_modules(remove_duplicate=False))
    candidates = {name: module for name, module in named if class_behind(type(module)) in swappable}
    if isinstance(config, Mapping):
        _check_patterns(config, candidates)
    chosen = {name: _choose(name, config) for name in candidates}
    if module_filter_fn is not None:
        for name, module in candidates.items():
            answer = _checked_answer(module_filter_fn(module, name), name)
            chosen[name] = answer if isinstance(answer, RMMConfig) else chosen[name] if answer else None

    selected = {name: settings for name, settings in chosen.items() if settings is not None}
    if not selected:
        raise ValueError(
            f"'model' must have a layer to convert (got {len(candidates)} candidates, none selected). "
            "Candidates are torch.nn.Linear, torch_geometric.nn.Linear and GCN2Conv, and with lean=True activations, "
            "dropout and normalisation of torch.nn; not their subclasses."
        )
    swap_layers({name: (candidates[name], settings) for name, settings in selected.items()}, swaps)
    return model


def swap_layers(selected: Mapping[str, tuple[Module, RMMConfig]], swaps: Mapping[type[Module], type[Module]]) -> None:
    """Swap the classes of the selected layers by ``swaps`` and give them their configs; all of them, or none.

    Classes that ``swaps`` does not list, such as those of layers that are swapped already, stay.

    Args:
        selected: Layers and configs by qualified name.
        swaps: Classes and what takes their place; what it lists for a class of another library says so by a class
            attribute ``stands_for``, by which ``revert_rmm`` finds the way back.

    Raises:
        ValueError: If a layer has a forward of its own, is compiled, or has an attribute ``config`` already.
    """
    for name, (module, _) in selected.items():
        _check_swappable(module, name, is_swapped=class_behind(type(module)) not in swaps)
    for module, settings in reversed(list(selected.values())):  # of a shared layer's names, the first one decides
        behind = class_behind(type(module))
        change_class(module, swaps.get(behind, behind))
        vars(module)["config"] = settings
        forget(module)


def original_of(layer: type[Module]) -> type[Module] | None:
    """The class that ``layer`` takes the place of, None where it is none that takes the place of another."""
    return _ORIGINALS.get(layer) or layer.__dict__.get("stands_for")


def revert_rmm(model: ModelT) -> ModelT:
    """Turn every layer that keeps sketches, and every lean module, back into the one it stands for, in place.

    Returns the same model.  The parameters stay the same objects.  A model without such layers is returned as it is.
    """
    for module in model.modules():
        original = original_of(class_behind(type(module)))
        if original is not None:
            change_class(module, original)
            del module.config
            for name in ("sketches", "row_masks"):
                module.__dict__.pop(name, None)
            forget(module)
        remove_mask_hooks(module)
    return model


def _choose(name: str, config: RMMConfig | Mapping[str, RMMConfig | None]) -> RMMConfig | None:
    if isinstance(config, RMMConfig):
        return config
    for pattern, settings in config.items():
        if re.fullmatch(pattern, name):
            return settings
    return None


def _check_patterns(config: Mapping[str, RMMConfig | None], candidates: Mapping[str, Module]) -> None:
    for pattern, settings in config.items():
        if settings is not None and not isinstance(settings, RMMConfig):
            raise TypeError(
                f"'config' must map patterns to an RMMConfig or None (got {type(settings).__name__} for {pattern!r}). "
                "Write RMMConfig(rate=0.1)."
            )
        compiled = check_pattern("config", pattern, "Write '.*' for all layers.", keys=True)
        if not any(compiled.fullmatch(name) for name in candidates):
            raise ValueError(
                f"'config' must have patterns that match a layer (got {pattern!r}). "
                f"Candidates are: {', '.join(candidates) or 'none'}."
            )


def _checked_answer(answer: object, name: str) -> bool | RMMConfig:
    if not isinstance(answer, bool | RMMConfig):
        raise TypeError(
            f"'module_filter_fn' must return True, False or an RMMConfig (got {answer!r} for {name!r}). "
            "Write RMMConfig(rate=...) for a rate."
        )
    return answer


def _check_swappable(module: Module, name: str, *, is_swapped: bool) -> None:
    name = name or "model"
    own = [key for key in ("forward", "_compiled_call_impl") if module.__dict__.get(key) is not None]
    if not is_swapped and hasattr(module, "config"):
        raise ValueError(
            f"'{name}' must not have an attribute 'config' of its own (got {module.config!r}). "
            "The converted layer keeps its RMMConfig there; rename yours."
        )
    if own:
        raise ValueError(
            f"'{name}' must run its class's forward (got {own[0]} set on the instance). "
            "Convert the model before wrapping or compiling it, or leave this layer out with module_filter_fn."
        )
