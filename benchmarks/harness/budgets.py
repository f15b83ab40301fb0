"""Settings that fill a budget of bytes: chosen layer by layer, or one rate for all layers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.harness.errors import BenchmarkError

# Imported late, in the functions below: the command line is read before anything heavy is imported.
if TYPE_CHECKING:
    from torch import nn

    from benchmarks.harness.task import Task
    from rmm_gnn import Plan, RMMConfig

_LOWEST_RATE = 1e-3
# Halvings of the logarithm of the rate: to within a thousandth of it.
_HALVINGS = 13


def make_plan(model: nn.Module, task: Task, config: RMMConfig, budget: str) -> Plan:
    """Plan for the budget, with what `config` says of the sketch family.

    Raises:
        BenchmarkError: When the budget cannot be met.
    """
    from rmm_gnn import plan

    try:
        return plan(model.train(), task.inputs, task.loss_fn, budget=budget, config=config)
    except ValueError as error:
        raise BenchmarkError(str(error)) from error


def uniform_config(model: nn.Module, task: Task, config: RMMConfig, budget: str) -> RMMConfig:
    """Return `config` with the highest rate, the same for all layers, that the budget allows.

    Raises:
        BenchmarkError: When no rate fits.
    """
    from rmm_gnn import compress_activations, convert_to_rmm
    from rmm_gnn.planning.budget import parse_budget
    from rmm_gnn.planning.trials import Trials

    trials = Trials(model.train(), task.inputs, task.loss_fn, lean=True)

    def bytes_at(rate: float) -> int:
        given = replace(config, rate=rate)
        return trials.bytes_under(
            lambda copy: convert_to_rmm(copy, given, lean=True), compress_activations(given, held=trials.held)
        )

    allowed = parse_budget(budget, trials.stock_bytes())
    if bytes_at(_LOWEST_RATE) > allowed:
        raise BenchmarkError(
            f"'budget' of {budget}, {allowed} bytes, cannot be met with norm {config.norm_codec} and x0 "
            f"{config.x0_codec}: rate {_LOWEST_RATE} takes {bytes_at(_LOWEST_RATE)}. Store these in fewer bits."
        )
    if bytes_at(1.0) <= allowed:
        return replace(config, rate=1.0)
    low, high = math.log(_LOWEST_RATE), 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if bytes_at(math.exp(middle)) <= allowed else (low, middle)
    return replace(config, rate=math.exp(low))
