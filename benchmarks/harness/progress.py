"""What a run has found so far."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, field, fields
from typing import Any

from benchmarks.harness.measure import PeakMemory


@dataclass
class Costs:
    """Time and memory of a run that may be made of parts, from a start or a resumption to the next one.

    What a part did after its last checkpoint is lost, is done again, and counts once.

    Attributes:
        step_s: Seconds of every training step.
        aside_s: Seconds of measurements between steps, which are no part of the run.
        checkpoint_s: Seconds of writing checkpoints.
        past_s: Seconds of the parts before this one, up to their last checkpoints, ``aside_s`` included.
        past_peak_bytes: Largest peak of these parts; None where there are none, or it cannot be had.
        resumptions: How often the run went on from a checkpoint.
    """

    step_s: list[float] = field(default_factory=list)
    aside_s: list[float] = field(default_factory=list)
    checkpoint_s: list[float] = field(default_factory=list)
    past_s: float = 0.0
    past_peak_bytes: int | None = None
    resumptions: int = 0

    def __post_init__(self) -> None:
        self._start = time.perf_counter()
        self._peak: PeakMemory | None = None

    def watch(self, peak: PeakMemory) -> None:
        """Start to measure the peak of this part."""
        self._peak = peak
        peak.start()

    @property
    def wall_s(self) -> float:
        """Seconds of all parts, but for measurements and checkpoints between steps."""
        return self._elapsed_s - sum(self.aside_s) - sum(self.checkpoint_s)

    @property
    def peak_bytes(self) -> int | None:
        """Largest peak of all parts."""
        assert self._peak is not None
        peaks = [self.past_peak_bytes, self._peak.read_bytes()]
        return max((peak for peak in peaks if peak is not None), default=None)

    @property
    def peak_definition(self) -> str:
        """What `peak_bytes` counts."""
        assert self._peak is not None
        return self._peak.definition

    @property
    def _elapsed_s(self) -> float:
        return self.past_s + time.perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        """Of this part and those before."""
        return state_of(self) | {"past_s": self._elapsed_s, "past_peak_bytes": self.peak_bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next part; the time since this object was made belongs to it."""
        load_into(self, state)
        self.resumptions += 1


@dataclass
class Curves:
    """What a full-batch run saw, epoch by epoch.

    Attributes:
        epoch: Epochs done.
        loss: Training loss of every one of them.
        epochs: The evaluated ones.
        valid: Validation accuracy at each of `epochs`.
        test: Test accuracy at each of `epochs`.
        kept: Bytes kept by a step, at each measurement of a run that moves its rates.
        kept_at: The layers' rates at the last of these.
        saved: What one step kept before the run, the fields of `KeptBytes`.
    """

    epoch: int = 0
    loss: list[float] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    valid: list[float] = field(default_factory=list)
    test: list[float] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    kept_at: dict[str, float] = field(default_factory=dict)
    saved: dict[str, int | None] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        load_into(self, state)


def state_of(values: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, copied."""
    return copy.deepcopy({one.name: getattr(values, one.name) for one in fields(values)})


def load_into(values: Any, state: dict[str, Any]) -> None:
    """Set the fields of a dataclass."""
    for one in fields(values):
        setattr(values, one.name, state[one.name])
