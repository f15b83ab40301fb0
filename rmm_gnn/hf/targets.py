"""Which layers of a model are meant: by kind, by pattern, by the ends of their names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from rmm_gnn._validation import check_pattern

ALL_LINEAR = "all-linear"
OUTPUT_HEAD = "output-head"

Names = str | Iterable[str]


def named_layers(model: Module) -> dict[str, Module]:
    """All modules by qualified name; one that is shared goes by all of its names."""
    return dict(model.named_modules(remove_duplicate=False))


def transformers_model(modules: Iterable[Module]) -> Module | None:
    """The outermost model of transformers, which peft may have wrapped; None where there is none."""
    # On the class: wrappers such as peft's hand the attributes of what they wrap on.
    return next((module for module in modules if hasattr(type(module), "base_model_prefix")), None)


def select(
    layers: Mapping[str, Module],
    convertible: Collection[str],
    target_modules: Names,
    exclude: Names | None,
    *,
    excludable: Collection[str] = (),
) -> tuple[list[str], set[str]]:
    """Return the names of the chosen linear layers in the model's order, and all that is excluded.

    Args:
        layers: All modules of the model by name.
        convertible: Those of them that are linear layers which can be converted.
        target_modules: What to choose: "all-linear", also alone in a list; a regular expression for whole names; or
            ends of names.
        exclude: What to leave out: a regular expression, ends of names, or "output-head".  None and no names are one.
        excludable: Names besides ``convertible`` that ``exclude`` may be about.

    Raises:
        TypeError: If an argument is neither a string nor made of strings.
        ValueError: If a pattern is invalid, something matches nothing, or a layer that is asked for by name cannot be
            converted.
    """
    if exclude is not None and not isinstance(exclude, str) and isinstance(exclude, Iterable):
        exclude = list(exclude) or None
    excluded = set() if exclude is None else _excluded(layers, [*convertible, *excludable], exclude)
    target_modules = _checked("target_modules", target_modules)
    if target_modules in (ALL_LINEAR, [ALL_LINEAR]):
        asked = list(convertible)
    else:
        asked = _asked(layers, convertible, target_modules, excluded)
    chosen = set(asked) - excluded
    if not chosen:
        raise ValueError(
            f"'model' must have a linear layer to convert (got {len(convertible)} candidates, none selected). "
            f"Candidates are: {_listed(convertible)}."
        )
    return [name for name in convertible if name in chosen], excluded


def takes_sketches(module: Module) -> bool:
    """Whether the weight is one that a layer of this library can multiply with: stored as numbers, not as codes."""
    weight: Any = getattr(module, "weight", getattr(module, "weight1", None))
    return isinstance(weight, Tensor) and weight.is_floating_point() and not is_traceable_wrapper_subclass(weight)


def _excluded(layers: Mapping[str, Module], known: Collection[str], exclude: Names) -> set[str]:
    """Names of what ``exclude`` matches and of all that is inside."""
    wanted = _checked("exclude", exclude)
    whole = isinstance(wanted, str)
    refused = {name for name, layer in layers.items() if _looks_linear(layer)}
    found: set[str] = set()
    for part in [wanted] if isinstance(wanted, str) else wanted:
        if part == OUTPUT_HEAD:
            matched = _output_head(layers)
            if not matched:
                raise ValueError(
                    f"'exclude' must be about what the model has (got {part!r} for one without 'base_model' and output "
                    f"embeddings). Name the layers. Candidates are: {_listed(known)}."
                )
        else:
            matched = [name for name in layers if _matches("exclude", part, name, whole=whole)]
        inside = _inside(layers, matched)
        if not inside & {*known, *refused}:
            raise ValueError(
                f"'exclude' must match a layer that would be converted (got {part!r}). "
                f"{_near(part, known, whole=whole)}"
            )
        found |= inside
    return found


def _asked(
    layers: Mapping[str, Module], convertible: Collection[str], target_modules: Names, excluded: set[str]
) -> list[str]:
    wanted = _checked("target_modules", target_modules)
    whole = isinstance(wanted, str)
    found: dict[str, None] = {}
    for part in [wanted] if isinstance(wanted, str) else wanted:
        matched = [name for name in layers if _matches("target_modules", part, name, whole=whole)]
        refused = [name for name in matched if name not in excluded and _looks_linear(layers[name])]
        refused = [name for name in refused if name not in convertible]
        if refused:
            raise ValueError(
                f"'target_modules' must select layers that can be converted (got {part!r}, which selects "
                f"'{refused[0]}', a {_kind(layers[refused[0]])}). {_way_out(layers[refused[0]])}"
            )
        inside = _inside(layers, matched)
        chosen = [name for name in convertible if name in inside]
        if not matched:
            raise ValueError(
                f"'target_modules' must match a layer (got {part!r}). {_near(part, convertible, whole=whole)}"
            )
        if not chosen:
            kinds = {name: _kind(layers[name]) for name in matched[:3]}
            raise ValueError(
                f"'target_modules' must select linear layers (got {part!r}, which selects "
                f"{', '.join(f'{name!r}, a {kind}' for name, kind in kinds.items())}). "
                f"{_near(part, convertible, whole=whole)}"
            )
        found.update(dict.fromkeys(chosen))
    return list(found)


def _checked(argument: str, given: Names) -> str | list[str]:
    if isinstance(given, str):
        return given
    parts = list(given) if isinstance(given, Iterable) else None
    if not parts or not all(isinstance(part, str) for part in parts):
        raise TypeError(
            f"'{argument}' must be a string or a list of strings (got {given!r}). "
            "Write a regular expression, or ends of names as in ['query', 'value']."
        )
    return parts


def _matches(argument: str, part: str, name: str, *, whole: bool) -> bool:
    if not whole:
        return name == part or name.endswith(f".{part}")
    way_out = "Write ends of names as a list, ['query', 'value']."
    return check_pattern(argument, part, way_out).fullmatch(name) is not None


def _inside(layers: Mapping[str, Module], matched: Iterable[str]) -> set[str]:
    """The modules and all within them, under every name they go by."""
    meant = {id(module) for name in matched for module in layers[name].modules()}
    return {name for name, module in layers.items() if id(module) in meant}


def _output_head(layers: Mapping[str, Module]) -> list[str]:
    """What a model of transformers has besides its backbone, and what gives its output scores."""
    model: Any = transformers_model(layers.values())
    if model is None:
        return []
    backbone = getattr(model, "base_model", model)
    within = {id(module) for module in backbone.modules()} - {id(model.get_output_embeddings())}
    inner = {id(module) for module in model.modules()} - {id(model)}
    return [name for name, module in layers.items() if id(module) in inner - within]


def _looks_linear(module: Module) -> bool:
    leaf = next(module.children(), None) is None
    return isinstance(module, torch.nn.Linear) or (leaf and "linear" in type(module).__name__.lower())


def _kind(module: Module) -> str:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def _way_out(module: Module) -> str:
    if isinstance(module, torch.nn.Linear) and type(module) is not torch.nn.Linear:
        return (
            "The forward of a subclass may differ, and weights stored as codes are not trained: leave it out with "
            "'exclude', or convert what reads the same input, such as 'lora_A'."
        )
    return "Only weights of a floating-point type can be trained through sketches: leave it out with 'exclude'."


def _near(part: str, known: Collection[str], *, whole: bool) -> str:
    """What may have been meant by ``part``, which matches none of ``known``."""
    ends = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in known))
    near = difflib.get_close_matches(part.rsplit(".", 1)[-1], ends, n=3, cutoff=0.5)
    if not whole:
        hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
        return f"{hint}Names of candidates end in: {_listed(ends)}."
    hint = f"Write [{near[0]!r}] for all whose names end so. " if near else ""
    return f"A string is a regular expression for whole names. {hint}Candidates are: {_listed(known)}."


def _listed(names: Collection[str], most: int = 8) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:most])
    return (shown or "none") + (f" and {len(names) - most} more" if len(names) > most else "")
