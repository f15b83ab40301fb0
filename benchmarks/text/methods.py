"""How a method changes a model: the one place where the benchmark meets the package."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from benchmarks.harness.methods import parse_sketch
from benchmarks.text.modes import MaskedRows, leave_to_torch
from benchmarks.text.run_config import TextRun

if TYPE_CHECKING:
    from rmm_gnn import RMMConfig

METHODS = ("rmm", "rmm-lean")


def apply_method(model: nn.Module, run: TextRun) -> Callable[..., AbstractContextManager[Any]]:
    """Change the model in place, its initial weights left alone.

    Returns:
        What makes the context of every training forward pass; backward needs none.  It takes the batch's ``row_mask``
        [batch, sequence], True where there are tokens and no padding, or nothing for sketches of all rows.

    Raises:
        ValueError: When what is excluded matches no linear layer, or all of them.
    """
    from rmm_gnn import compress_activations
    from rmm_gnn.hf import apply_rmm

    if run.rate is None:
        return lambda row_mask=None: nullcontext()
    config = rmm_config(run)
    apply_rmm(model, config, exclude=run.exclude)
    if run.method == "rmm":
        return lambda row_mask=None: nullcontext() if row_mask is None else MaskedRows(row_mask)
    if run.exclude is not None:
        leave_to_torch(layer for layer in model.modules() if type(layer) is nn.Linear)
    return lambda row_mask=None: compress_activations(config, row_mask=row_mask)


def rmm_config(run: TextRun, rate: float | None = None) -> RMMConfig:
    """The run's configuration; of a baseline, which has none, the package's defaults at `rate`.

    Raises:
        ValueError: When a setting is out of its range.
        TypeError: When one is of the wrong type.
    """
    from rmm_gnn import RMMConfig

    names = ("center", "codec", "norm_codec", "act_codec")
    given: dict[str, Any] = {name: getattr(run, name) for name in names if getattr(run, name) is not None}
    if run.sketch is not None:
        given["sketch"] = parse_sketch(run.sketch)
    return RMMConfig(rate=rate if run.rate is None else run.rate, **given)
