"""All that a run goes on from: what its model, its optimizer, its generators and its other parts hold."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from rmm_gnn import load_training_state, training_state


class Part(Protocol):
    """What has a state: an optimizer, a scheduler, the curves so far."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Go on from them."""
        ...


class Resumable:
    """The state of a run between two steps, in one dictionary that `torch.load` reads with ``weights_only=True``.

    Besides parts it holds parameters and buffers, what converted layers hold from step to step, and the states of
    PyTorch's generators.  rmm_gnn has no random state of its own: every seed is drawn from these.

    Args:
        model: What is trained.
        device: Where; the state of its generator is held, and that of the CPU.
        **parts: By name; they are loaded in this order, after the model.
    """

    def __init__(self, model: nn.Module, device: torch.device, **parts: Part) -> None:
        self._model, self._device, self._parts = model, device, parts

    def state_dict(self) -> dict[str, Any]:
        """The state now; its tensors are those of the run and change with it."""
        return {
            "model": self._model.state_dict(),
            "held": training_state(self._model),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "generators": generator_states(self._device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, in a model that was built and converted the same way."""
        self._model.load_state_dict(state["model"])
        load_training_state(self._model, state["held"])
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        # Last, since building or loading a part may draw.
        set_generator_states(state["generators"], self._device)


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """States of PyTorch's default generators of the CPU and of ``device``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `generator_states` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
