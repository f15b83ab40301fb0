"""How a method changes a model: the one place where the benchmark meets the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.harness.methods import parse_sketch
from benchmarks.text.run_config import TextRun

if TYPE_CHECKING:
    from torch import nn

    from rmm_gnn import RMMConfig

METHODS = ("rmm", "rmm-lean")


def apply_method(model: nn.Module, run: TextRun) -> None:
    """Change the model in place, its initial weights left alone.

    Raises:
        ValueError: When what is excluded matches no layer, or is all of them.
    """
    from rmm_gnn.hf import apply_rmm

    if run.rate is not None:
        whole_block = run.method == "rmm-lean"
        apply_rmm(model, rmm_config(run), exclude=run.exclude, whole_block=whole_block, row_mask=bool(run.row_mask))


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
