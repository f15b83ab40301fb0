"""Make a model of transformers train through sketches, in place."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import TypeVar

from torch.nn import Module

from rmm_gnn._validation import check_bool, check_pattern
from rmm_gnn.config import RMMConfig
from rmm_gnn.convert import LEAN_SWAPS, SWAPS, original_of, swap_layers
from rmm_gnn.hf.attention_rows import mask_rows, reader_of_tokens
from rmm_gnn.hf.config import AnyConfig, read_config
from rmm_gnn.hf.norms import lean_norms
from rmm_gnn.hf.targets import ALL_LINEAR, Names, named_layers, select, takes_sketches
from rmm_gnn.sharing import SharedSketches

ModelT = TypeVar("ModelT", bound=Module)


def apply_rmm(
    model: ModelT,
    config: AnyConfig = None,
    target_modules: Names = ALL_LINEAR,
    exclude: Names | None = None,
    *,
    whole_block: bool = False,
    share: bool = True,
    row_mask: bool = False,
) -> ModelT:
    """Make the linear layers of ``model`` keep sketches of their inputs; returns the same model, changed in place.

    Layers are swapped as ``convert_to_rmm`` swaps them: parameters, ties, state_dict keys and hooks stay, a checkpoint
    saved afterwards is one of the model as it was, and ``revert_rmm`` turns everything back.  Converted are layers
    whose class is exactly ``torch.nn.Linear`` (BERT, RoBERTa, DistilBERT, ALBERT, DeBERTa, T5, Llama and most others),
    ``Conv1D`` of transformers (GPT-2), and what else ``convert_to_rmm`` converts.  Left alone are subclasses, such as
    int8 layers, weights stored as codes, experts whose weights are no layers, and embeddings; one that shares its
    weight with a linear layer goes on sharing it.  Call it before the ``Trainer`` is made, before ``torch.compile``,
    and with peft after ``get_peft_model``: frozen weights keep nothing, the matrices A and B of LoRA keep sketches.

    Args:
        model: A model of transformers, one wrapped by peft, or any other module.
        config: What to keep, as ``read_config`` takes it: an ``RMMConfig``, its settings as a dictionary or JSON, or a
            mapping from regular expressions to these.  Of a mapping the first pattern that matches a layer's whole
            qualified name decides, and None or no match leaves the layer as it is.
        target_modules: "all-linear"; a regular expression for whole qualified names; or a list of names or of ends of
            names, as ``["query", "value"]``: what peft takes.  A match that holds layers, such as a whole attention
            block, stands for all linear layers in it.
        exclude: What to leave as it is, in the same words.  "output-head" stands for what the model has besides its
            backbone (``model.base_model``), such as classifiers, and for its output embeddings.
        whole_block: Also make normalisation, Dropout and activation modules keep little, as ``convert_to_rmm`` does
            with ``lean=True``, and the GELUs and root-mean-square norms (Llama, Mistral, Qwen, T5 ...) of transformers.
            Models that call functions instead are reached by ``compress_activations``.
        share: Layers that read one tensor, such as query, key and value, keep one sketch of it.  Their noise is then
            correlated; each estimate is unbiased still.
        row_mask: Layers that read one row for each token sketch no padding, that is no row which the 2-D
            ``attention_mask`` of the forward pass leaves out: as many rows of the sketch say more.  The loss must not
            read padding, or the estimate is biased (``diagnostics.check_row_masks``): label it with -100, and leave
            this off where a softmax runs over all tokens, as over the answers in question answering.  Under
            activation checkpointing, two forward passes with different masks before backward raise an error, also where
            the outputs of the first are kept and backward never runs through them: detach such.

    Returns:
        ``model``.

    Raises:
        TypeError: If an argument is of the wrong type, or ``model`` is compiled.
        ValueError: If no layer is selected, a pattern is invalid or matches nothing, a layer that is asked for by name
            cannot be converted, a setting is unknown or out of range, or ``row_mask`` is asked for of a model that
            takes no ``attention_mask`` or with a family that needs all rows, in a grid ("kronecker").

    Example:
        >>> import torch
        >>> block = torch.nn.ModuleDict({"query": torch.nn.Linear(8, 8), "out": torch.nn.Linear(8, 4)})
        >>> apply_rmm(block, {"rate": 0.1}, target_modules=["query"])
        ModuleDict(
          (query): RMMTorchLinear(in_features=8, out_features=8, bias=True, rate=0.1)
          (out): Linear(in_features=8, out_features=4, bias=True)
        )
    """
    _check_model(model)
    check_bool("whole_block", whole_block)
    check_bool("share", share)
    check_bool("row_mask", row_mask)
    settings = read_config(config)
    linear, lean = _linear_swaps(), _lean_swaps() if whole_block else {}
    layers = named_layers(model)
    convertible = {name: layer for name, layer in layers.items() if _is_one(layer, linear) and takes_sketches(layer)}
    block = {name: layer for name, layer in layers.items() if _is_one(layer, lean)}
    chosen, excluded = select(layers, convertible, target_modules, exclude, excludable=block)
    chosen += [name for name in block if name not in excluded]
    selected = _with_configs({name: layers[name] for name in chosen}, settings)
    tokens = reader_of_tokens(model) if row_mask else None
    _check_maskable({name: one for name, one in selected.items() if name in convertible}, tokens)
    swap_layers(selected, {**linear, **lean})
    converted = [layer for layer, _ in selected.values()]
    _share(converted, layers.values(), share)
    mask_rows(converted, layers.values(), tokens)
    return model


def _check_maskable(linear: Mapping[str, tuple[Module, RMMConfig]], reader: Module | None) -> None:
    """Check that no layer whose rows are masked has a family that needs them all for a grid."""
    within = set() if reader is None else {id(module) for module in reader.modules()}
    for name, (layer, config) in linear.items():
        if id(layer) in within and config.family.reads_shape:
            raise ValueError(
                f"'row_mask' must come with families that need no grid of rows (got {config.family.name!r} for "
                f"{name!r}). Use sketch='count_sketch' there, or leave row_mask out."
            )


def _share(selected: Iterable[Module], layers: Iterable[Module], share: bool) -> None:
    """Give the selected linear layers the place for sketches that other layers of the model have already, or none."""
    places = [vars(layer)["sketches"] for layer in layers if "sketches" in vars(layer)]
    sketches = places[0] if places else SharedSketches()
    for layer in selected:
        vars(layer).pop("sketches", None)
        if share and hasattr(type(layer), "sketches"):
            vars(layer)["sketches"] = sketches


def _linear_swaps() -> dict[type[Module], type[Module]]:
    # Where transformers is not imported, no model has its layers.
    if "transformers.pytorch_utils" not in sys.modules:
        return SWAPS
    from rmm_gnn.hf.conv1d import RMMConv1D

    return {**SWAPS, RMMConv1D.stands_for: RMMConv1D}


def _lean_swaps() -> dict[type[Module], type[Module]]:
    if "transformers.activations" not in sys.modules:
        return LEAN_SWAPS
    from rmm_gnn.hf.activations import LEAN_ACTIVATIONS

    return {**LEAN_SWAPS, **LEAN_ACTIVATIONS, **lean_norms()}


def _is_one(layer: Module, swaps: Mapping[type[Module], type[Module]]) -> bool:
    """Whether the class is one to swap, or one that was swapped for such."""
    return type(layer) in swaps or original_of(type(layer)) in swaps


def _with_configs(
    chosen: Mapping[str, Module], settings: RMMConfig | Mapping[str, RMMConfig | None]
) -> dict[str, tuple[Module, RMMConfig]]:
    if isinstance(settings, RMMConfig):
        return {name: (layer, settings) for name, layer in chosen.items()}
    decided: dict[str, RMMConfig | None] = {}
    for pattern, one in settings.items():
        compiled = check_pattern("config", pattern, "Write '.*' for all layers.", keys=True)
        matched = [name for name in chosen if compiled.fullmatch(name)]
        if not matched:
            raise ValueError(
                f"'config' must have patterns that match a selected layer (got {pattern!r}). "
                f"Selected are: {', '.join(chosen)}."
            )
        decided = {**dict.fromkeys(matched, one), **decided}
    selected = {name: (chosen[name], one) for name, one in decided.items() if one is not None}
    if not selected:
        raise ValueError(
            f"'config' must give a layer a config (got none for any of {len(chosen)} selected layers). "
            "Map a pattern to an RMMConfig or its settings."
        )
    return {name: selected[name] for name in chosen if name in selected}


def _check_model(model: Module) -> None:
    if not isinstance(model, Module):
        raise TypeError(f"'model' must be a torch.nn.Module (got {type(model).__name__}). Pass the model itself.")
    if hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None) is not None:
        raise TypeError(
            "'model' must not be compiled (got the result of torch.compile, or of its own compile()). "
            "Call apply_rmm first, then compile."
        )
