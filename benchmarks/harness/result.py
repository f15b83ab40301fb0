"""What a run found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.harness.kept_bytes import KeptBytes


@dataclass(frozen=True)
class TrainResult:
    """What a run found.

    Attributes:
        best_epoch: First evaluated epoch (counted from 1) with the highest validation accuracy.
        valid_accuracy: There, in [0, 1].
        test_accuracy: There, in [0, 1].
        num_parameters: Trained numbers.
        saved: Bytes kept for backward by one step; parameters and data not counted.
        peak_bytes: Peak memory, or None where it cannot be had.
        peak_definition: What `peak_bytes` counts.
        epoch_s: Median seconds of an epoch's training steps (one, on the full batch): forward, backward, optimiser, and
            what batches were waited for; without evaluation.
        wall_s: Seconds of the whole run, but for measurements of kept bytes and checkpoints between its steps.  Of a
            run that was resumed, the sum over its parts, each up to the last checkpoint that it wrote.
        loss: Training loss of every epoch.
        epochs: The evaluated epochs.
        valid: Validation accuracy at each of `epochs`.
        test: Test accuracy at each of `epochs`.
        saved_mean_bytes: For runs that move their rates, `saved.total` on average over measurements; else None.
        noise: For such runs step, layer, measured noise and rate of every measurement.
        checkpoint_s: Seconds of writing checkpoints.
        resumptions: How often the run went on from a checkpoint; peak memory is then the largest of its parts, times of
            steps are from all of them, and all else is as if it had not stopped.
        sampling: For runs on sampled batches, what these were in the first process, see `SamplingCosts`, and a hash of
            the trained weights for every process; else None.
    """

    best_epoch: int
    valid_accuracy: float
    test_accuracy: float
    num_parameters: int
    saved: KeptBytes
    peak_bytes: int | None
    peak_definition: str
    epoch_s: float
    wall_s: float
    loss: list[float]
    epochs: list[int]
    valid: list[float]
    test: list[float]
    saved_mean_bytes: float | None = None
    noise: list[tuple[int, str, float, float]] = field(default_factory=list)
    checkpoint_s: float = 0.0
    resumptions: int = 0
    sampling: dict[str, Any] | None = None
