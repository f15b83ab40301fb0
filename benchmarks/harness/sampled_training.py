"""A run that is trained on sampled batches, in one process or in several."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.kept_bytes import kept_bytes
from benchmarks.harness.layerwise import evaluate
from benchmarks.harness.loaders import BatchLoader, GraphBatch
from benchmarks.harness.measure import PeakMemory, stopwatch
from benchmarks.harness.methods import METHODS
from benchmarks.harness.noise import NoiseFollower
from benchmarks.harness.progress import Costs, Curves, load_into, state_of
from benchmarks.harness.ranks import Ranks
from benchmarks.harness.result import TrainResult
from benchmarks.harness.resumable import Resumable
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.subgraphs import use_product
from benchmarks.harness.training import Training, build_model, training_loss

Item = TypeVar("Item")


@dataclass
class SamplingCosts:
    """What the batches of this process were, summed over all steps so far.

    Attributes:
        steps: Their number.
        trained: Rows that the loss is of.
        rows: Rows that each product sees: of the first Linear, the convolutions, the last Linear.
        entries: Entries of the matrices of all layers.
        waiting_s: Seconds that each epoch waited for its batches.
        cpu_s: Seconds of processor time of each epoch's steps and of sampling in this process, all threads together:
            unlike time, it hardly depends on what else the machine does.
    """

    steps: int = 0
    trained: int = 0
    rows: list[int] = field(default_factory=list)
    entries: int = 0
    waiting_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def add(self, batch: GraphBatch, num_layers: int) -> None:
        """Count a batch."""
        rows = batch.rows(num_layers)
        self.steps += 1
        self.trained += len(batch.y)
        self.rows = [sum(pair) for pair in zip(self.rows or [0] * len(rows), rows, strict=True)]
        self.entries += batch.num_entries(num_layers)

    def summary(self, epochs: int) -> dict[str, Any]:
        """Means per step, for the records."""
        return {
            "steps_per_epoch": self.steps // epochs,
            "trained_rows_per_step": self.trained / self.steps,
            "rows_per_step": [number / self.steps for number in self.rows],
            "entries_per_step": self.entries / self.steps,
            "waiting_s": statistics.median(self.waiting_s),
            "cpu_s": statistics.median(self.cpu_s),
        }

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        load_into(self, state)


class SampledTraining(Training):
    """A run on sampled batches; every process of its job has one, with the same weights in all of them.

    The order of the training nodes, what is sampled, dropout and sketches are a function of seed, epoch and rank, which
    PyTorch's generators are set by when an epoch begins.  So a run goes on from a checkpoint as if it had not stopped,
    though the file has only what ranks have in common: weights, optimizer and running statistics, which are averaged
    over ranks after each epoch.

    Args:
        run: What to do.
        dataset: The data, on CPU.
        state: What `state_dict` returned on the first rank when the run stopped; None starts it.
        ranks: This process.
    """

    def __init__(
        self, run: RunConfig, dataset: NodeDataset, state: dict[str, Any] | None = None, ranks: Ranks | None = None
    ) -> None:
        self.costs, self.curves, self._sampling = Costs(), Curves(), SamplingCosts()
        self._run, self._dataset, self._device = run, dataset, torch.device(run.device)
        self._ranks = ranks or Ranks()
        self._split = dataset.split_for(run.seed)
        self._loader = BatchLoader(run, dataset, self._split.train, self._ranks.rank)
        batch = next(self._loader.epoch(1)).to(self._device)
        self._model = use_product(build_model(run, dataset.x.shape[1], dataset.num_classes, batch.task()))
        if state is None:
            loss_of = training_loss(run, batch.task())
            self.curves.saved = asdict(kept_bytes(self._model, loss_of, batch.tensors(), run))
        del batch
        peak = PeakMemory(self._device)
        if state is None:
            self.costs.watch(peak)
        self._optimizer = torch.optim.Adam(self._model.parameters(), lr=run.lr, weight_decay=run.weight_decay)
        self._follower = NoiseFollower(run, self._model, self._optimizer)  # follows nothing: `adaptive` is off
        self._state = Resumable(
            self._model,
            self._device,
            optimizer=self._optimizer,
            curves=self.curves,
            costs=self.costs,
            sampling=self._sampling,
        )
        if state is not None:
            self._state.load_state_dict(state)
            self.costs.watch(peak)
        self._wrapped = self._ranks.wrapped(self._model)

    def run_epoch(self) -> None:
        """One pass over the training nodes, and the evaluation that is due after it."""
        run, curves, epoch = self._run, self.curves, self.curves.epoch + 1
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        waits: list[float] = []
        start = time.process_time()
        with stopwatch(self._device, self.costs.step_s):
            for batch in _timed(self._loader.epoch(epoch), waits):
                total += self._step(batch.to(self._device))
                self._sampling.add(batch, run.layers)
            # Every rank has seen other rows.
            self._ranks.average(list(self._model.buffers()))
        self._sampling.cpu_s.append(time.process_time() - start)
        self._sampling.waiting_s.append(sum(waits))
        loss, weight = self._ranks.total(*total.tolist())
        curves.epoch = epoch
        curves.loss.append(loss / weight)
        if epoch % run.eval_every == 0 or epoch == run.epochs:
            scores = [0.0, 0.0]
            if self._ranks.is_first:
                assert run.eval_chunk is not None
                index = (self._split.valid, self._split.test)
                scores = evaluate(self._model, self._dataset, self._device, run.eval_chunk, *index)
            valid, test = self._ranks.total(*scores)  # the others have none
            curves.epochs.append(epoch)
            curves.valid.append(valid)
            curves.test.append(test)

    def result(self) -> TrainResult:
        """What the run found, after its last epoch."""
        sampling = self._sampling.summary(self.curves.epoch) | {"digests": self._ranks.digests(self._model)}
        return replace(super().result(), sampling=sampling)

    def _step(self, batch: GraphBatch) -> torch.Tensor:
        """Train on a batch; returns the loss times its weight in the epoch's, and that weight."""
        run, model = self._run, self._model
        weight, scale = 1.0, None
        if batch.weights is None:
            # Gradients are averaged over ranks, each with as many rows as its batch happens to have.
            (weight,) = self._ranks.total(len(batch.y))
            scale = self._ranks.world_size / max(1.0, weight)
        task = batch.task(scale)
        model.train()
        self._optimizer.zero_grad(set_to_none=True)
        with METHODS[run.method].context(model, run, task):
            loss = task.loss_fn(self._wrapped(*task.inputs))
        loss.backward()
        if run.clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), run.clip)
        self._optimizer.step()
        return torch.stack([loss.detach().double() * weight, torch.full_like(loss, weight, dtype=torch.float64)])


def _timed(items: Iterable[Item], into_s: list[float]) -> Iterator[Item]:
    """The items; seconds of waiting for each are appended."""
    start = time.perf_counter()
    for item in items:
        into_s.append(time.perf_counter() - start)
        yield item
        start = time.perf_counter()
