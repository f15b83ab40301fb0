"""One run by the protocol: full batch, evaluated as it goes, reported at the best validation epoch."""

from __future__ import annotations

import copy
import statistics
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness.config import RunConfig
from benchmarks.harness.datasets.base import NodeDataset, Split
from benchmarks.harness.measure import PeakMemory, SavedBytes, measure_saved_bytes, stopwatch
from benchmarks.harness.methods import METHODS
from benchmarks.harness.model import GCN2, robust_loss


@dataclass(frozen=True)
class TrainResult:
    """What a run found.

    Attributes:
        best_epoch: First evaluated epoch (counted from 1) with the highest validation accuracy.
        valid_accuracy: There, in [0, 1].
        test_accuracy: There, in [0, 1].
        num_parameters: Trained numbers.
        saved: Bytes kept for backward by one step.
        peak_bytes: Peak memory, or None where it cannot be had.
        peak_definition: What `peak_bytes` counts.
        epoch_s: Median seconds of a training step: forward, backward, optimiser; without evaluation.
        wall_s: Seconds of the whole run.
        loss: Training loss of every epoch.
        epochs: The evaluated epochs.
        valid: Validation accuracy at each of `epochs`.
        test: Test accuracy at each of `epochs`.
    """

    best_epoch: int
    valid_accuracy: float
    test_accuracy: float
    num_parameters: int
    saved: SavedBytes
    peak_bytes: int | None
    peak_definition: str
    epoch_s: float
    wall_s: float
    loss: list[float]
    epochs: list[int]
    valid: list[float]
    test: list[float]


def build_model(run: RunConfig, in_channels: int, out_channels: int) -> nn.Module:
    """The run's model on CPU; equal seeds give every method the same initial weights."""
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
    return METHODS[run.method].prepare(model, run)


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
    model = build_model(run, dataset.x.shape[1], dataset.num_classes).to(device)

    def loss_of(network: nn.Module) -> Tensor:
        network.train()
        return robust_loss(network(dataset.x, dataset.adjacency)[split.train], dataset.y[split.train])

    data = (dataset.x, dataset.y, dataset.adjacency, split.train)
    saved = _saved_bytes(model, loss_of, data)
    peak = PeakMemory(device)
    peak.start()
    torch.manual_seed(run.seed)  # the measurement and the converter may have drawn numbers
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr, weight_decay=run.weight_decay)
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
                if run.clip > 0:
                    nn.utils.clip_grad_norm_(model.parameters(), run.clip)
                optimizer.step()
            losses.append(loss.item())
            del loss  # or the graph of this step would live on beside the next one's
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
        wall_s=time.perf_counter() - start,
        loss=losses,
        epochs=epochs,
        valid=valid,
        test=test,
    )


def _saved_bytes(model: nn.Module, loss_of: object, data: tuple[Tensor, ...]) -> SavedBytes:
    # On a copy: a step changes running statistics and gradients, and the measured run must start untouched.
    probe = copy.deepcopy(model)
    return measure_saved_bytes(probe, lambda: loss_of(probe), data)  # type: ignore[operator]


@torch.no_grad()
def _evaluate(model: nn.Module, dataset: NodeDataset, split: Split) -> tuple[float, float]:
    """Validation and test accuracy."""
    model.eval()
    logits = model(dataset.x, dataset.adjacency)
    return dataset.evaluate(logits, split.valid), dataset.evaluate(logits, split.test)
