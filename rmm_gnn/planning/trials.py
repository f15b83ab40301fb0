"""Passes over copies of a model: what it keeps, and how noisy its gradients are, under any setting."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rmm_gnn.config import RMMConfig
from rmm_gnn.context import compress_activations
from rmm_gnn.convert import LEAN_SWAPS, SWAPS, convert_to_rmm, revert_rmm
from rmm_gnn.diagnostics.memory import saved_entries
from rmm_gnn.diagnostics.report import SavedEntry
from rmm_gnn.diagnostics.storages import tensors_in
from rmm_gnn.planning.decision import Plan
from rmm_gnn.planning.items import EXACT
from rmm_gnn.planning.norm_items import NORMS

LossFn = Callable[[Any], Tensor]
# Converted, but nothing is coded or left out.
PLAIN = replace(EXACT, norm_codec="fp32", act_codec="fp32", x0_codec="fp32")
# All but exact: its noise is 1/7000 of INT2's.  It draws the random numbers that any other code draws, so that dropout
# is the same.
_FINE_CODEC = "int8:scale=fp32"
FINE = replace(EXACT, norm_codec=_FINE_CODEC, act_codec=_FINE_CODEC, x0_codec=_FINE_CODEC)
# Gradients, each of one weight in one pass, from which the noise of a setting is measured, and that of a plan.
_GRADIENTS_OF_A_SETTING, _GRADIENTS_OF_A_PLAN = 12, 48


@dataclass
class Trials:
    """A model to try settings on; the model itself is left as it is.

    Attributes:
        model: A stock copy.
        inputs: Arguments of its forward pass.
        loss_fn: Takes its output and returns the loss.
        lean: Whether the forward pass runs under ``compress_activations``.
        progress: Called with a line of text before each step that takes time.
    """

    model: Module
    inputs: tuple[Any, ...]
    loss_fn: LossFn
    lean: bool
    progress: Callable[[str], None] = lambda text: None
    _exact: dict[int, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model = revert_rmm(copy.deepcopy(self.model))
        with torch.random.fork_rng(), torch.no_grad():
            self.model(*self.inputs)  # fills caches, which are the model's then

    @property
    def held(self) -> tuple[Tensor, ...]:
        """Tensors of the inputs, which whoever runs the model has in hand until backward."""
        return tuple(tensors_in(*self.inputs))

    def converts(self, model: Module) -> bool:
        """Whether ``model`` has a module to convert."""
        swapped = SWAPS | LEAN_SWAPS if self.lean else SWAPS
        return any(type(module) in swapped for module in model.modules())

    def copy(self, config: RMMConfig | None, norms: Mapping[str, RMMConfig] | None = None) -> Module:
        """A copy of the model, converted unless ``config`` is None.

        Normalisation layers are decided one by one: they are coded as ``norms`` says, where it is given finely if not
        named there, and else not at all.
        """
        model = copy.deepcopy(self.model)
        if config is None or not self.converts(model):
            return model
        convert_to_rmm(model, config, lean=self.lean)
        for name, module in model.named_modules():
            if isinstance(module, NORMS):
                module.config = PLAIN if norms is None else norms.get(name, FINE)
        return model

    def mode(self, config: RMMConfig) -> AbstractContextManager[Any]:
        """What forward passes run under."""
        return compress_activations(config, held=self.held) if self.lean else nullcontext()

    def stock_bytes(self) -> int:
        """Bytes kept by the model as it is."""
        return sum_of(self._recorded(self.copy(None)))

    def bytes_under(self, prepare: Callable[[Module], Module], context: AbstractContextManager[Any]) -> int:
        """Bytes kept by a stock copy of the model after ``prepare``, with its forward pass under ``context``."""
        model = prepare(self.copy(None))
        with context:
            return sum_of(self._recorded(model))

    def entries(self, config: RMMConfig) -> tuple[SavedEntry, ...]:
        """What the converted model keeps, operator by operator."""
        model = self.copy(config)
        with self.mode(config):
            return self._recorded(model)

    def _recorded(self, model: Module) -> tuple[SavedEntry, ...]:
        with torch.random.fork_rng():
            return saved_entries(model, self.inputs, self.loss_fn)

    def _gradients(self, model: Module, context: AbstractContextManager[Any], seed: int) -> list[Tensor]:
        """Gradients of all trained matrices; with one seed, settings that draw alike see the same dropout."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with context:
                loss = self.loss_fn(model(*self.inputs))
            loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad and p.dim() == 2 and p.grad is not None]

    def _error(self, model: Module, context: AbstractContextManager[Any], draw: int) -> float:
        """Squared error of the gradients over their squares, summed over the weights, in one draw."""
        if draw not in self._exact:
            self._exact[draw] = self._gradients(self.copy(FINE, {}), self.mode(FINE), draw)
        return sum(map(_relative_error, self._gradients(model, context, draw), self._exact[draw]))

    def noise_under(self, config: RMMConfig = FINE, norms: Mapping[str, RMMConfig] | None = None) -> float:
        """The noise to signal, summed over all weights, of a setting that codes something more coarsely than `FINE`."""
        draws = self._draws(_GRADIENTS_OF_A_SETTING)
        return sum(self._error(self.copy(config, norms or {}), self.mode(config), draw) for draw in draws) / len(draws)

    def noise_of(self, made: Plan, *, norms_alone: bool = False) -> float:
        """The noise to signal of a plan, summed over all weights; of its normalisation layers alone if so wanted."""
        self.progress("noise of the plan")
        configs = {name: _drawing(config) for name, config in made.configs.items()}
        if norms_alone:
            names = {name for name, module in self.copy(PLAIN).named_modules() if isinstance(module, NORMS)}
            return self.noise_under(FINE, {name: configs[name] for name in names & configs.keys()})
        drawing = replace(made, configs=configs, functions=_drawing(made.functions))
        draws = self._draws(_GRADIENTS_OF_A_PLAN)
        total = sum(self._error(drawing.apply(self.copy(None)), drawing.context(*self.held), draw) for draw in draws)
        return total / len(draws)

    def _draws(self, gradients: int) -> range:
        """Passes to average over: each has the gradients of all weights."""
        weights = sum(p.requires_grad and p.dim() == 2 for p in self.model.parameters())
        return range(max(1, -(-gradients // max(1, weights))))


def sum_of(entries: Iterable[SavedEntry]) -> int:
    """Bytes of all entries."""
    return sum(entry.saved_bytes for entry in entries)


def _relative_error(found: Tensor, exact: Tensor) -> float:
    square = float(exact.double().square().sum())
    return float((found - exact).double().square().sum()) / square if square else 0.0


def _drawing(config: RMMConfig) -> RMMConfig:
    """``config`` with codes that draw no random numbers replaced by `FINE`'s, so that dropout is the same."""
    names = ("norm_codec", "act_codec", "x0_codec")
    changes: dict[str, Any] = {name: _FINE_CODEC for name in names if getattr(config, name) == "fp32"}
    return replace(config, **changes)
