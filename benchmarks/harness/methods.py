"""The methods a benchmark compares; adding one is one entry in `METHODS`."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from benchmarks.harness.config import RunConfig
    from rmm_gnn import RMMConfig, Sketch


@dataclass(frozen=True)
class Method:
    """A way to train the stock model.

    Attributes:
        name: Word used on the command line and in tables.
        prepare: Takes the freshly initialised model and the run, returns the model to train.  It must leave
            the initial weights alone, since runs of different methods are compared in pairs.
        uses_sketch: Whether ``--sketch`` and ``--rate`` apply; if so the method gets one row for each pair.
        check: Takes the run; raises ValueError for settings that `prepare` would refuse, before data are
            read.
        describe: Takes the run; the method's own configuration as JSON-able fields, for the records.
    """

    name: str
    prepare: Callable[[nn.Module, RunConfig], nn.Module]
    uses_sketch: bool = False
    check: Callable[[RunConfig], object] = lambda run: None
    describe: Callable[[RunConfig], dict[str, Any] | None] = lambda run: None


def _rmm_config(run: RunConfig) -> RMMConfig:
    # Imported late: the command line is read before anything heavy is imported.
    from rmm_gnn import RMMConfig

    # Every row of a method that uses a sketch has all four.
    assert run.sketch is not None and run.center is not None and run.codec is not None
    return RMMConfig(rate=run.rate, sketch=parse_sketch(run.sketch), center=run.center, codec=run.codec)


def parse_sketch(text: str) -> Sketch:
    """A sketch family from ``NAME`` or ``NAME:SETTING=VALUE,...``, such as ``sors:transform=dct``.

    Raises:
        ValueError: When the family or a setting is unknown, or a value is out of its range.
        TypeError: When a value is of the wrong type.
    """
    from rmm_gnn.sketches import FAMILIES, get_sketch

    name, _, settings = text.partition(":")
    family = get_sketch(name)
    if not settings:
        return family
    known = [field.name for field in fields(family)]
    values: dict[str, Any] = {}
    for setting in settings.split(","):
        key, _, value = setting.partition("=")
        if key not in known or not value:
            raise ValueError(
                f"'sketch' must have settings of {name} (got {setting!r}). "
                f"Write {name}:SETTING=VALUE with one of: {', '.join(known) or 'none, it has no settings'}."
            )
        try:
            values[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            values[key] = value
    return FAMILIES[name](**values)


def _prepare_rmm(model: nn.Module, run: RunConfig) -> nn.Module:
    from rmm_gnn import convert_to_rmm

    return convert_to_rmm(model, _rmm_config(run))


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("baseline", prepare=lambda model, run: model),
        Method(
            "rmm",
            prepare=_prepare_rmm,
            uses_sketch=True,
            check=_rmm_config,
            describe=lambda run: _rmm_config(run).to_dict(),
        ),
    )
}
