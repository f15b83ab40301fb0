"""One run by the protocol: full batch, evaluated as it goes, reported at the best validation epoch."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness.datasets.base import NodeDataset, Split
from benchmarks.harness.live_bytes import LiveBytes
from benchmarks.harness.measure import PeakMemory, measure_saved_bytes, stopwatch
from benchmarks.harness.methods import METHODS
from benchmarks.harness.model import GCN2
from benchmarks.harness.noise import NoiseFollower
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.task import Task


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
        epoch_s: Median seconds of a training step: forward, backward, optimiser; without evaluation.
        wall_s: Seconds of the whole run, but for measurements of kept bytes between its steps.
        loss: Training loss of every epoch.
        epochs: The evaluated epochs.
        valid: Validation accuracy at each of `epochs`.
        test: Test accuracy at each of `epochs`.
        saved_mean_bytes: For runs that move their rates, `saved.total` on average over measurements; else None.
        noise: For such runs step, layer, measured noise and rate of every measurement.
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


def build_model(run: RunConfig, in_channels: int, out_channels: int, task: Task | None = None) -> nn.Module:
    """The run's model on its device; equal seeds give every method the same initial weights.

    ``task`` is what methods look at that choose their settings by the data.
    """
    torch.manual_seed(run.seed)
    model = GCN2(
        in_channels,
        run.hidden,
        out_channels,
        num_layers=run.layers,
        alpha=run.alpha,
        theta=run.theta,
        shared_weights=run.shared_weights,
        dropout=run.dropout,
        bn_momentum=run.bn_momentum,
    )
    return METHODS[run.method].prepare(model.to(torch.device(run.device)), run, cast("Task", task))


def training_loss(run: RunConfig, task: Task) -> Callable[[nn.Module], Tensor]:
    """The forward pass of a training step by the run's method: takes the model, returns the loss."""
    context = METHODS[run.method].context

    def loss_of(model: nn.Module) -> Tensor:
        model.train()
        with context(model, run, task):
            return task.loss_fn(model(*task.inputs))

    return loss_of


def train(run: RunConfig, dataset: NodeDataset, *, position: str = "", quiet: bool = False) -> TrainResult:
    """Train once.

    Args:
        run: What to do.
        dataset: The data, already on the run's device.
        position: Shown before the progress bar, such as ``[2/6]``.
        quiet: No progress bar.

    Returns:
        Accuracies, costs and curves.
    """
    start = time.perf_counter()
    device = torch.device(run.device)
    split = dataset.split_for(run.seed).to(device)
    task = Task.of(dataset, split)
    model = build_model(run, dataset.x.shape[1], dataset.num_classes, task)

    loss_of = training_loss(run, task)
    data = (dataset.x, dataset.y, dataset.adjacency, split.train)
    saved = _kept_bytes(model, loss_of, data, run)
    peak = PeakMemory(device)
    peak.start()
    torch.manual_seed(run.seed)  # the measurement and the converter may have drawn numbers
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, weight_decay=run.weight_decay)
    follower = NoiseFollower(run, model, optimizer)
    kept: list[int] = []
    kept_at: dict[str, float] = {}
    measuring_s: list[float] = []
    step_s: list[float] = []
    losses: list[float] = []
    epochs: list[int] = []
    valid: list[float] = []
    test: list[float] = []
    bar = tqdm(
        range(1, run.epochs + 1),
        desc=f"{position} {run.label} seed {run.seed}".strip(),
        unit="epoch",
        file=sys.stderr,
        disable=quiet,
        dynamic_ncols=True,
    )
    with bar:
        for epoch in bar:
            with stopwatch(device, step_s):
                optimizer.zero_grad(set_to_none=True)
                loss = loss_of(model)
                loss.backward()
                measured = follower.after_backward()
                if run.clip > 0:
                    nn.utils.clip_grad_norm_(model.parameters(), run.clip)
                optimizer.step()
                follower.after_step()
            losses.append(loss.item())
            del loss  # or the graph of this step would live on beside the next one's
            if measured and kept and follower.rates() == kept_at:
                kept.append(kept[-1])  # measuring takes as long as several steps, and would find the same
            elif measured:
                with stopwatch(device, measuring_s):
                    kept.append(_kept_bytes(model, loss_of, data, run).total)
                kept_at = follower.rates()
            if epoch % run.eval_every == 0 or epoch == run.epochs:
                scores = _evaluate(model, dataset, split)
                epochs.append(epoch)
                valid.append(scores[0])
                test.append(scores[1])
            bar.set_postfix(loss=f"{losses[-1]:.4f}", valid=f"{100 * valid[-1]:.2f}%" if valid else "-", refresh=False)
    best = max(range(len(valid)), key=valid.__getitem__)
    return TrainResult(
        best_epoch=epochs[best],
        valid_accuracy=valid[best],
        test_accuracy=test[best],
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        saved=saved,
        peak_bytes=peak.read_bytes(),
        peak_definition=peak.definition,
        epoch_s=statistics.median(step_s),
        wall_s=time.perf_counter() - start - sum(measuring_s),
        loss=losses,
        epochs=epochs,
        valid=valid,
        test=test,
        saved_mean_bytes=statistics.fmean(kept) if kept else None,
        noise=follower.history(),
    )


def _kept_bytes(
    model: nn.Module, loss_of: Callable[[nn.Module], Tensor], data: tuple[Tensor, ...], run: RunConfig
) -> KeptBytes:
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


@torch.no_grad()
def _evaluate(model: nn.Module, dataset: NodeDataset, split: Split) -> tuple[float, float]:
    """Validation and test accuracy."""
    model.eval()
    logits = model(dataset.x, dataset.adjacency)
    return dataset.evaluate(logits, split.valid), dataset.evaluate(logits, split.test)
