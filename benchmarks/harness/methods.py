"""The methods a benchmark compares; adding one is one entry in `METHODS`."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

from benchmarks.harness import accounting
from benchmarks.harness.accounting import Block

# Imported late, in the functions below: the command line is read before anything heavy is imported.
if TYPE_CHECKING:
    from torch import nn

    from benchmarks.harness.run_config import RunConfig
    from benchmarks.harness.task import Task
    from rmm_gnn import RMMConfig, Sketch


@dataclass(frozen=True)
class Method:
    """A way to train the stock model.

    Attributes:
        name: Word used on the command line and in tables.
        prepare: Takes the freshly initialised model on the run's device, the run and the task, and returns the
            model to train.  It must leave the initial weights alone, since runs of different methods are compared in
            pairs.
        axes: Settings of the sweep that apply; the method gets one row for each combination of their values.
        context: Takes the model, the run and the task; in force around every forward pass in training, loss included,
            not around backward.
        check: Takes the run; raises ValueError for settings that `prepare` would refuse, before data are
            read.
        describe: Takes the run; the method's own configuration as JSON-able fields, for the records.
        theory: Takes the block and the run; bytes kept per node and layer, by construction; None where the data
            decide.
        own_hooks: Whether it sets saved-tensor hooks itself: they hide which layer keeps what.
        note: What a reader of the table has to know about it.
    """

    name: str
    prepare: Callable[[nn.Module, RunConfig, Task], nn.Module] = lambda model, run, task: model
    axes: tuple[str, ...] = ()
    context: Callable[[nn.Module, RunConfig, Task], AbstractContextManager[Any]] = lambda *_: nullcontext()
    check: Callable[[RunConfig], object] = lambda run: None
    describe: Callable[[RunConfig], dict[str, Any] | None] = lambda run: None
    theory: Callable[[Block, RunConfig], float | None] = lambda block, run: accounting.stock(block)
    own_hooks: bool = False
    note: str | None = None


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


def _rmm_config(run: RunConfig) -> RMMConfig:
    from rmm_gnn import RMMConfig

    assert run.sketch is not None  # as in every row of a method that uses a sketch
    names = ("rate", "center", "codec", "norm_codec", "norm_rate", "x0_codec", "anchor")
    given: dict[str, Any] = {name: getattr(run, name) for name in names if getattr(run, name) is not None}
    return RMMConfig(sketch=parse_sketch(run.sketch), **given)


def _settings(run: RunConfig, *names: str) -> list[Any]:
    values = [getattr(run, name) for name in names]
    assert None not in values, names
    return values


def _prepare_rmm(model: nn.Module, run: RunConfig, task: Task) -> nn.Module:
    from rmm_gnn import convert_to_rmm

    return convert_to_rmm(model, _rmm_config(run), lean=False)


def _prepare_lean(model: nn.Module, run: RunConfig, task: Task) -> nn.Module:
    from rmm_gnn import convert_to_rmm

    return convert_to_rmm(model, _rmm_config(run))


def _lean_context(model: nn.Module, run: RunConfig, task: Task) -> AbstractContextManager[Any]:
    from rmm_gnn import compress_activations

    return compress_activations(_rmm_config(run), held=task.held if run.held else ())


def _check_exact(run: RunConfig) -> None:
    assert run.rate is not None
    if not 0 < run.rate <= 1:
        raise ValueError(f"'rate' must be in (0, 1] (got {run.rate}). For exact it is the share of features kept.")


def _prepare_exact(model: nn.Module, run: RunConfig, task: Task) -> nn.Module:
    from rmm_gnn.baselines.exact import convert_to_exact

    return convert_to_exact(model, kept_frac=run.rate, bits=run.exact_bits)


def _exact_context(model: nn.Module, run: RunConfig, task: Task) -> AbstractContextManager[Any]:
    from rmm_gnn.baselines.exact import exact_activations

    return exact_activations(bits=run.exact_bits)


def _prepare_checkpoint(model: nn.Module, run: RunConfig, task: Task) -> nn.Module:
    from benchmarks.harness.model import GCN2

    assert isinstance(model, GCN2)
    model.checkpoint = True
    return model


def _offload_context(model: nn.Module, run: RunConfig, task: Task) -> AbstractContextManager[Any]:
    from benchmarks.harness.offload import offload

    return offload(run.device)


def _prepare_plan(model: nn.Module, run: RunConfig, task: Task) -> nn.Module:
    from benchmarks.harness.budgets import make_plan

    assert run.budget is not None
    made = make_plan(model, task, _rmm_config(run), run.budget)
    model.plan = made  # for the context; a plan is no module
    return made.apply(model)


def _prepare_uniform(model: nn.Module, run: RunConfig, task: Task) -> nn.Module:
    from benchmarks.harness.budgets import uniform_config
    from rmm_gnn import convert_to_rmm

    assert run.budget is not None
    config = uniform_config(model, task, _rmm_config(run), run.budget)
    model.config = config
    return convert_to_rmm(model, config)


def _uniform_context(model: nn.Module, run: RunConfig, task: Task) -> AbstractContextManager[Any]:
    from rmm_gnn import compress_activations

    return compress_activations(cast("RMMConfig", model.config), held=task.inputs)


_SKETCH_AXES = ("sketch", "rate", "center", "codec")

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("baseline"),
        Method(
            "rmm",
            prepare=_prepare_rmm,
            axes=(*_SKETCH_AXES, "anchor", "adaptive", "noise_target"),
            check=_rmm_config,
            describe=lambda run: _rmm_config(run).to_dict(),
            theory=lambda block, run: accounting.rmm(block, *_settings(run, "rate", "codec", "anchor")),
            note="rmm: randomised products, everything else stock.",
        ),
        Method(
            "rmm-lean",
            prepare=_prepare_lean,
            axes=(*_SKETCH_AXES, "norm_codec", "norm_rate", "x0_codec", "anchor", "held", "adaptive", "noise_target"),
            context=_lean_context,
            check=_rmm_config,
            describe=lambda run: _rmm_config(run).to_dict(),
            theory=lambda block, run: accounting.rmm_lean(
                block, *_settings(run, "rate", "codec", "norm_codec", "x0_codec", "norm_rate", "anchor")
            ),
            note="rmm-lean: randomised products, and lean BatchNorm, ReLU and dropout (norm: BatchNorm's input).",
        ),
        Method(
            "rmm-plan",
            prepare=_prepare_plan,
            axes=("sketch", "budget"),
            context=lambda model, run, task: model.plan.context(*task.inputs),  # type: ignore[operator,union-attr]
            check=_rmm_config,
            theory=lambda block, run: None,
            note="rmm-plan: the whole model, rate and codec of every layer chosen for least noise within the bytes.",
        ),
        Method(
            "rmm-uniform",
            prepare=_prepare_uniform,
            axes=("sketch", "center", "codec", "norm_codec", "norm_rate", "x0_codec", "budget"),
            context=_uniform_context,
            check=_rmm_config,
            theory=lambda block, run: None,
            note="rmm-uniform: as rmm-lean, the highest rate for all layers that fits the bytes.",
        ),
        Method(
            "exact",
            prepare=_prepare_exact,
            axes=("rate", "exact_bits"),
            context=_exact_context,
            check=_check_exact,
            describe=lambda run: {"kept_frac": run.rate, "bits": run.exact_bits},
            theory=lambda block, run: accounting.exact(block, *_settings(run, "rate", "exact_bits")),
            note="exact: EXACT (Liu et al., 2022), inputs projected along features and rounded at random.",
        ),
        Method(
            "checkpoint",
            prepare=_prepare_checkpoint,
            theory=lambda block, run: accounting.checkpoint(block),
            own_hooks=True,
            note="checkpoint: torch.utils.checkpoint around every block. Saved are the blocks' inputs; the one block "
            "that backward recomputes at a time shows in the peak alone.",
        ),
        Method(
            "offload",
            context=_offload_context,
            own_hooks=True,
            note="offload: torch.autograd.graph.save_on_cpu. Theory is what it moves to the host.",
        ),
    )
}
