"""Memory of fine-tuning: of one step on a fixed batch, and of every step over an epoch (the paper's Figure 8)."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.measure import SavedStorages
from rmm_gnn import MemoryReport, memory_report
from rmm_gnn.diagnostics.process_peak import status_bytes

Forward = Callable[[dict[str, Tensor]], Tensor]


class _AsModule(nn.Module):
    """A forward pass with its casts, as the ledger wants to see it."""

    def __init__(self, model: nn.Module, forward: Forward, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self._forward = forward
        self._names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._forward(dict(zip(self._names, inputs, strict=True)))


@dataclass(frozen=True)
class StepMemory:
    """What one training step takes, parameters and batch not counted.

    Attributes:
        saved_bytes: Kept between forward and backward, by the package's ledger.
        peak_bytes: At the highest point; None on CUDA, where the allocator tells it of the whole run.
    """

    saved_bytes: int
    peak_bytes: int | None


STEP_PEAK = (
    "highest point of a training step on the first examples, gradients included, parameters and optimizer not, by the "
    "profiler's record of allocations"
)


def measure_step(
    model: nn.Module, forward: Forward, inputs: dict[str, Tensor], loss_fn: Callable[[Tensor], Tensor]
) -> StepMemory:
    """Measure one step.  Gradients and PyTorch's default generators are left as they were.

    Args:
        model: In training mode.
        forward: Takes the inputs, returns the logits.
        inputs: A batch.
        loss_fn: Takes the logits.
    """
    from rmm_gnn.diagnostics.memory import saved_entries

    module, given = _AsModule(model, forward, list(inputs)), tuple(inputs.values())
    device = given[0].device
    if device.type == "cuda":
        with torch.random.fork_rng(devices=[device]):
            entries = saved_entries(module, given, loss_fn)
        return StepMemory(sum(entry.saved_bytes for entry in entries), None)
    report = ledger_of(model, forward, inputs, loss_fn)
    return StepMemory(report.saved_bytes, report.peak_bytes)


def ledger_of(
    model: nn.Module, forward: Forward, inputs: dict[str, Tensor], loss_fn: Callable[[Tensor], Tensor]
) -> MemoryReport:
    """The package's ledger of one step; arguments as for `measure_step`."""
    with _muted():
        return memory_report(_AsModule(model, forward, list(inputs)), *inputs.values(), loss_fn=loss_fn)


@contextmanager
def _muted() -> Iterator[None]:
    """Pass over what the profiler's own library writes to standard error, below Python's."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class MemoryTrack:
    """Memory of every step of the first epoch.

    Args:
        model: What is trained.
        device: Where.
        steps: So many steps are watched; 0 watches none.
    """

    def __init__(self, model: nn.Module, device: torch.device, steps: int) -> None:
        self._model, self._device, self._left = model, device, steps
        self._is_cuda = device.type == "cuda"
        self._step: list[int] = []
        self._bytes: list[int] = []
        self._resident: list[int | None] = []

    @contextmanager
    def forward(self, step: int, inputs: dict[str, Tensor]) -> Iterator[None]:
        """Around the forward pass of a step."""
        if self._left == 0:
            yield
            return
        self._step.append(step)
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
            yield
            return
        with SavedStorages([*self._model.parameters(), *self._model.buffers(), *inputs.values()]) as saved:
            yield
        self._bytes.append(saved.total_bytes)
        self._resident.append(status_bytes("VmRSS"))

    def after_step(self) -> None:
        """After the optimizer has moved."""
        if self._left == 0:
            return
        self._left -= 1
        if self._is_cuda:
            self._bytes.append(torch.cuda.max_memory_allocated(self._device))

    def state_dict(self) -> dict[str, Any]:
        """What was watched so far, and what is left to watch."""
        return {name: copy.copy(getattr(self, name)) for name in ("_left", "_step", "_bytes", "_resident")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        for name, value in state.items():
            setattr(self, name, value)

    def record(self) -> dict[str, Any] | None:
        """JSON-able fields; None where nothing was watched."""
        if not self._step:
            return None
        if self._is_cuda:
            definition = "torch.cuda.max_memory_allocated of a training step, parameters and optimizer included"
            return {"step": self._step, "bytes": self._bytes, "definition": definition}
        definition = (
            "bytes given to autograd to keep by a training step's forward pass, each storage once, parameters and "
            "batch not counted; resident_bytes: the process's resident set when forward has ended"
        )
        return {
            "step": self._step, "bytes": self._bytes, "definition": definition, "resident_bytes": self._resident
        }  # fmt: skip
