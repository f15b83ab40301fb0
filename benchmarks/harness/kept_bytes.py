"""What one training step keeps between forward and backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.harness.live_bytes import LiveBytes
from benchmarks.harness.measure import measure_saved_bytes
from benchmarks.harness.methods import METHODS
from benchmarks.harness.run_config import RunConfig


@dataclass(frozen=True)
class KeptBytes:
    """What one step keeps between forward and backward.

    Attributes:
        convolutions: Bytes given to autograd inside convolutions, each storage where it is first kept; None where the
            method's own saved-tensor hooks hide them.
        total: Bytes on the run's device that live when forward is over and only the loss is held.
        host: The same on the host; None for runs on CPU, where it is one memory.
    """

    convolutions: int | None
    total: int
    host: int | None


def kept_bytes(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor], data: tuple[Tensor, ...], run: RunConfig
) -> KeptBytes:
    """Measure one training step of the run, on a copy of its model.

    Args:
        model: As it is.
        loss_of: Takes the model, returns the loss.
        data: What is there in any case, and not counted.
        run: Whose step it is.
    """
    # On a copy: a step changes running statistics and gradients, and the measured run must start untouched.
    probe = copy.deepcopy(model)
    live = LiveBytes()
    device = torch.device(run.device).type
    alive: dict[str, int] = {}

    def forward() -> Tensor:
        with live:
            loss = loss_of(probe)
        alive.update({kind: live.read(kind, loss) for kind in {device, "cpu"}})
        return loss

    # Nor must the run draw other numbers than one that is not measured.
    with torch.random.fork_rng(devices=[torch.device(run.device)] if device == "cuda" else []):
        by_hooks = measure_saved_bytes(probe, forward, data)
    return KeptBytes(
        convolutions=None if METHODS[run.method].own_hooks else by_hooks.convolutions,
        total=alive[device],
        host=None if device == "cpu" else alive["cpu"],
    )
