"""Sketch families.  One line in ``FAMILIES`` makes a family known by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from rmm_gnn._validation import check_choice
from rmm_gnn.sketches.base import DEFAULT_WORKSPACE_BYTES, Draw, Pass, Sketch
from rmm_gnn.sketches.block_rademacher import BlockRademacherSketch
from rmm_gnn.sketches.count_sketch import CountSketch
from rmm_gnn.sketches.gaussian import GaussianSketch
from rmm_gnn.sketches.importance_sampling import ImportanceSamplingSketch
from rmm_gnn.sketches.kronecker import KroneckerSketch
from rmm_gnn.sketches.norm_sampling import NormSamplingSketch
from rmm_gnn.sketches.rademacher import RademacherSketch
from rmm_gnn.sketches.row_sampling import RowSamplingSketch
from rmm_gnn.sketches.sors import SORSSketch

__all__ = [
    "DEFAULT_WORKSPACE_BYTES",
    "FAMILIES",
    "BlockRademacherSketch",
    "CountSketch",
    "Draw",
    "GaussianSketch",
    "ImportanceSamplingSketch",
    "KroneckerSketch",
    "NormSamplingSketch",
    "Pass",
    "RademacherSketch",
    "RowSamplingSketch",
    "SORSSketch",
    "Sketch",
    "from_settings",
    "from_spec",
    "get_sketch",
]

#: The family of each name.
FAMILIES: dict[str, type[Sketch]] = {
    "block_rademacher": BlockRademacherSketch,
    "count_sketch": CountSketch,
    "gaussian": GaussianSketch,
    "importance_sampling": ImportanceSamplingSketch,
    "kronecker": KroneckerSketch,
    "norm_sampling": NormSamplingSketch,
    "rademacher": RademacherSketch,
    "row_sampling": RowSamplingSketch,
    "sors": SORSSketch,
}


def get_sketch(sketch: str | Sketch) -> Sketch:
    """Return a configured family as it is, or the family of that name with its default settings.

    Raises:
        ValueError: If the name is unknown (the message lists the known ones), or the family is not registered under its
            name: an operator rebuilds it from there.
        TypeError: If ``sketch`` is neither a name nor a configured family.
    """
    if isinstance(sketch, Sketch):
        if FAMILIES.get(sketch.name) is not type(sketch):
            raise ValueError(
                f"'sketch' must be of a registered family (got {type(sketch).__name__} named {sketch.name!r}). "
                "Add it to rmm_gnn.sketches.FAMILIES under a name of its own."
            )
        return sketch
    return FAMILIES[check_choice("sketch", sketch, FAMILIES)]()


def from_spec(spec: str) -> Sketch:
    """Rebuild a family from its ``Sketch.spec`` string."""
    family = _from_spec(spec)
    if FAMILIES.get(family.name) is not type(family):  # defined anew since, as in a notebook whose cell ran twice
        _from_spec.cache_clear()
        family = _from_spec(spec)
    return family


@lru_cache(maxsize=256)
def _from_spec(spec: str) -> Sketch:
    return from_settings(json.loads(spec))


def from_settings(settings: Mapping[str, Any]) -> Sketch:
    """Rebuild a family from what ``Sketch.to_dict`` gave.

    Raises:
        ValueError: If the name or a setting is unknown, or a setting is out of range.
        TypeError: If ``settings`` is no mapping, or a setting is of the wrong type.
    """
    if not isinstance(settings, Mapping):
        raise TypeError(
            f"'sketch' must be a dictionary of settings (got {type(settings).__name__}). Write {{'name': 'gaussian'}}."
        )
    values = dict(settings)
    family = FAMILIES[check_choice("sketch", values.pop("name", None), FAMILIES)]
    known = [field.name for field in fields(family)]
    unknown = [key for key in values if key not in known]
    if unknown:
        raise ValueError(
            f"'sketch' must have known settings (got {', '.join(map(repr, unknown))} for {family.name!r}). "
            f"They are: {', '.join(['name', *known])}."
        )
    return family(**values)
