"""Runs whose rates, or learning rate, follow the noise that sketching adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.harness.methods import parse_sketch
from benchmarks.harness.run_config import RunConfig

# Steps between measurements.
_EVERY = 10


class NoiseFollower:
    """Does what a run's ``adaptive`` says; nothing where it is off."""

    def __init__(self, run: RunConfig, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        from rmm_gnn import NoiseController, NoiseLR

        self._controller = self._scheduler = None
        if run.adaptive == "rate":
            assert run.noise_target is not None
            self._controller = NoiseController(model, run.noise_target, every=_EVERY, mode=_mode(run))
        elif run.adaptive == "lr":
            self._scheduler = NoiseLR(optimizer, model, full_batch=True, every=_EVERY, mode=_mode(run))

    def after_backward(self) -> bool:
        """Move the rates where they move; whether there was a measurement."""
        if self._controller is None:
            return False
        before = len(self._controller.history)
        self._controller.step()
        return len(self._controller.history) > before

    def after_step(self) -> None:
        """Set the learning rate of the next step."""
        if self._scheduler is not None:
            self._scheduler.step()

    def rates(self) -> dict[str, float]:
        """Rates of the layers whose rates move."""
        return {} if self._controller is None else self._controller.rates

    def history(self) -> list[tuple[int, str, float, float]]:
        """Step, layer, measured noise and rate of every measurement."""
        changes = [] if self._controller is None else self._controller.history
        return [(change.step, change.layer, change.measured, change.rate) for change in changes]

    def state_dict(self) -> dict[str, Any]:
        """Of what moves, after a step: nothing measured waits then to be read."""
        moving = self._controller or self._scheduler
        return {"moving": None if moving is None else moving.state_dict(), "history": self.history()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; the optimizer has been loaded."""
        if self._scheduler is not None:
            self._scheduler.load_state_dict(state["moving"])
        if self._controller is not None:
            from rmm_gnn.planning import RateChange

            self._controller.load_state_dict(state["moving"])
            self._controller.history.extend(RateChange(*change) for change in state["history"])


def _mode(run: RunConfig) -> str:
    """From sketches, which takes the least memory, where the family's noise can be had from them."""
    assert run.sketch is not None
    return "sketch" if parse_sketch(run.sketch).variance_follows_from_moments else "exact"
