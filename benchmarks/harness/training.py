"""One run between its start and its end: what it is made of, and one epoch of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.harness.datasets.base import NodeDataset, Split
from benchmarks.harness.kept_bytes import KeptBytes, kept_bytes
from benchmarks.harness.measure import PeakMemory, stopwatch
from benchmarks.harness.methods import METHODS
from benchmarks.harness.model import GCN2
from benchmarks.harness.noise import NoiseFollower
from benchmarks.harness.progress import Costs, Curves
from benchmarks.harness.result import TrainResult
from benchmarks.harness.resumable import Resumable
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.task import Task


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


class Training:
    """A run.

    Args:
        run: What to do.
        dataset: The data, already on the run's device.
        state: What `state_dict` returned when the run stopped; None starts it.
    """

    def __init__(self, run: RunConfig, dataset: NodeDataset, state: dict[str, Any] | None = None) -> None:
        self.costs, self.curves = Costs(), Curves()
        self._run, self._dataset, self._device = run, dataset, torch.device(run.device)
        self._split = dataset.split_for(run.seed).to(self._device)
        task = Task.of(dataset, self._split)
        self._model = build_model(run, dataset.x.shape[1], dataset.num_classes, task)
        self._loss_of = training_loss(run, task)
        if state is None:
            self.curves.saved = asdict(self._kept_bytes())
        peak = PeakMemory(self._device)
        if state is None:
            self.costs.watch(peak)
        torch.manual_seed(run.seed)  # the measurement and the converter may have drawn numbers
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=run.lr, weight_decay=run.weight_decay)
        self._follower = NoiseFollower(run, self._model, self._optimizer)
        self._state = Resumable(
            self._model,
            self._device,
            optimizer=self._optimizer,
            follower=self._follower,
            curves=self.curves,
            costs=self.costs,
        )
        if state is not None:
            self._state.load_state_dict(state)
            self.costs.watch(peak)

    def state_dict(self) -> dict[str, Any]:
        """All that the run goes on from, between two epochs; its tensors change with the run."""
        return self._state.state_dict()

    def run_epoch(self) -> None:
        """One step on the full batch, and what is to be measured and evaluated after it."""
        run, model, curves = self._run, self._model, self.curves
        with stopwatch(self._device, self.costs.step_s):
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss_of(model)
            loss.backward()
            measured = self._follower.after_backward()
            if run.clip > 0:
                nn.utils.clip_grad_norm_(model.parameters(), run.clip)
            self._optimizer.step()
            self._follower.after_step()
        curves.epoch += 1
        curves.loss.append(loss.item())
        del loss  # or the graph of this step would live on beside the next one's
        if measured and curves.kept and self._follower.rates() == curves.kept_at:
            curves.kept.append(curves.kept[-1])  # measuring takes as long as several steps, and would find the same
        elif measured:
            with stopwatch(self._device, self.costs.aside_s):
                curves.kept.append(self._kept_bytes().total)
            curves.kept_at = self._follower.rates()
        if curves.epoch % run.eval_every == 0 or curves.epoch == run.epochs:
            valid, test = _evaluate(model, self._dataset, self._split)
            curves.epochs.append(curves.epoch)
            curves.valid.append(valid)
            curves.test.append(test)

    def result(self) -> TrainResult:
        """What the run found, after its last epoch."""
        curves, costs = self.curves, self.costs
        best = max(range(len(curves.valid)), key=curves.valid.__getitem__)
        return TrainResult(
            best_epoch=curves.epochs[best],
            valid_accuracy=curves.valid[best],
            test_accuracy=curves.test[best],
            num_parameters=sum(parameter.numel() for parameter in self._model.parameters()),
            saved=KeptBytes(**curves.saved),
            peak_bytes=costs.peak_bytes,
            peak_definition=costs.peak_definition,
            epoch_s=statistics.median(costs.step_s),
            wall_s=costs.wall_s,
            loss=curves.loss,
            epochs=curves.epochs,
            valid=curves.valid,
            test=curves.test,
            saved_mean_bytes=statistics.fmean(curves.kept) if curves.kept else None,
            noise=self._follower.history(),
            checkpoint_s=sum(costs.checkpoint_s),
            resumptions=costs.resumptions,
        )

    def _kept_bytes(self) -> KeptBytes:
        data = (self._dataset.x, self._dataset.y, self._dataset.adjacency, self._split.train)
        return kept_bytes(self._model, self._loss_of, data, self._run)


@torch.no_grad()
def _evaluate(model: nn.Module, dataset: NodeDataset, split: Split) -> tuple[float, float]:
    """Validation and test accuracy."""
    model.eval()
    logits = model(dataset.x, dataset.adjacency)
    return dataset.evaluate(logits, split.valid), dataset.evaluate(logits, split.test)
