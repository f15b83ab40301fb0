"""One fine-tuning run between its start and its end: what it is made of, and one step of it."""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.measure import PeakMemory, stopwatch
from benchmarks.harness.progress import Costs, load_into, state_of
from benchmarks.harness.resumable import Resumable
from benchmarks.text.batches import endless_batches
from benchmarks.text.data import Encoded
from benchmarks.text.evaluate import evaluate, loss_of
from benchmarks.text.memory import STEP_PEAK, MemoryTrack, StepMemory, ledger_of, measure_step
from benchmarks.text.methods import apply_method
from benchmarks.text.models import ModelSource
from benchmarks.text.noise import NoiseTrack
from benchmarks.text.precision import Precision
from benchmarks.text.run_config import TextRun
from benchmarks.text.schedule import lr_factor
from benchmarks.text.tasks import TASKS
from rmm_gnn import MemoryReport


@dataclass(frozen=True, eq=False)
class Prepared:
    """What the runs of a task share: data in token numbers, and what makes their models."""

    train: Encoded
    evaluations: tuple[Encoded, ...]
    source: ModelSource
    data_source: str


@dataclass(frozen=True)
class TrainResult:
    """What a run found: fields of its record, by the same names."""

    results: dict[str, Any]
    curves: dict[str, list[float]]
    memory: dict[str, Any] | None
    noise: dict[str, Any] | None


def steps_of(run: TextRun, num_examples: int) -> tuple[int, int]:
    """Training steps in all, and in an epoch."""
    an_epoch = -(-num_examples // run.batch_size)
    return min(run.epochs * an_epoch, run.max_steps or sys.maxsize), an_epoch


def build_model(run: TextRun, source: ModelSource) -> tuple[nn.Module, Callable[[dict[str, Tensor]], Tensor]]:
    """The run's model on its device, and the forward pass of its training: takes a batch, returns the logits."""
    device = torch.device(run.device)
    model = source.build(TASKS[run.task].num_outputs, run.seed).to(device)
    apply_method(model, run)
    precision = Precision(run.precision, device)

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        with precision.casts():
            return model(**inputs).logits

    return model, forward


@dataclass
class TextCurves:
    """What a run saw, step by step.

    Attributes:
        step: Steps done.
        examples: Trained on, repetitions counted.
        since: Sum of the training losses since the last evaluation.
        curves: Lists by name, an entry an evaluation.
        found: The evaluations, field by field.
        saved_bytes: Kept by one step before the run.
        step_peak_bytes: Highest point of that step; None where the allocator tells it of the whole run.
    """

    since: Tensor
    step: int = 0
    examples: int = 0
    curves: dict[str, list[float]] = field(
        default_factory=lambda: {"step": [], "train_loss": [], "eval_loss": [], "score": []}
    )
    found: list[dict[str, Any]] = field(default_factory=list)
    saved_bytes: int = 0
    step_peak_bytes: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        load_into(self, state | {"since": state["since"].to(self.since.device)})


class FineTuning:
    """A run.

    Args:
        run: What to do.
        data: Of its task.
        state: What `state_dict` returned when the run stopped; None starts it.
    """

    def __init__(self, run: TextRun, data: Prepared, state: dict[str, Any] | None = None) -> None:
        self.costs = Costs()
        self._run, self._data, self._device, self._task = run, data, torch.device(run.device), TASKS[run.task]
        self.total, an_epoch = steps_of(run, len(data.train))
        self._every = run.eval_every_steps or an_epoch
        self.seen = TextCurves(torch.zeros((), device=self._device))
        self._model, self._forward = build_model(run, data.source)
        self._precision = Precision(run.precision, self._device)
        if state is None:
            of_a_step = _step_memory(run, self._model, self._forward, data.train)
            self.seen.saved_bytes, self.seen.step_peak_bytes = of_a_step.saved_bytes, of_a_step.peak_bytes
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=run.lr,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=run.weight_decay,
            fused=True,
        )
        self._noise = NoiseTrack(self._model, run)
        self._memory = MemoryTrack(self._model, self._device, min(an_epoch, self.total) if run.track_memory else 0)
        self._state = Resumable(
            self._model,
            self._device,
            optimizer=self._optimizer,
            precision=self._precision,
            noise=self._noise,
            memory=self._memory,
            seen=self.seen,
            costs=self.costs,
        )
        torch.manual_seed(run.seed)  # the converter may have drawn numbers
        if state is not None:
            self._state.load_state_dict(state)
        self.costs.watch(PeakMemory(self._device))
        batches = endless_batches(data.train.lengths, run.batch_size, run.seed)
        self._batches = itertools.islice(batches, self.seen.step, None)

    def state_dict(self) -> dict[str, Any]:
        """All that the run goes on from, between two steps; its tensors change with the run."""
        return self._state.state_dict()

    def run_step(self) -> bool:
        """One step, and the evaluation after it where one is due; whether there was one."""
        run, seen = self._run, self.seen
        self._model.train()
        inputs, targets = self._data.train.batch(next(self._batches), self._device)
        for group in self._optimizer.param_groups:
            group["lr"] = run.lr * lr_factor(seen.step, self.total, run.warmup_share)
        seen.step += 1
        with stopwatch(self._device, self.costs.step_s):
            with self._memory.forward(seen.step, inputs):
                loss = loss_of(self._task, self._forward(inputs), targets)
            self._precision.backward(loss)
            self._noise.after_backward(self._precision.loss_scale)
            self._precision.step(self._optimizer)
            self._optimizer.zero_grad(set_to_none=True)
            seen.since += loss.detach()
            del loss  # or the graph of this step would live on beside the next one's
        self._memory.after_step()
        seen.examples += len(targets)
        if seen.step % self._every and seen.step < self.total:
            return False
        self._evaluate()
        return True

    def result(self) -> TrainResult:
        """What the run found, after its last step."""
        seen, costs = self.seen, self.costs
        found = seen.found
        best = max(range(len(found)), key=lambda i: found[i]["score"])
        results = {
            "score": found[best]["score"],
            "metrics": found[best]["metrics"],
            "last_metrics": found[-1]["metrics"],
            "best_step": seen.curves["step"][best],
            "constant_predictions": found[best]["constant"],
            "steps": self.total,
            "num_parameters": sum(parameter.numel() for parameter in self._model.parameters()),
            "examples_per_s": seen.examples / sum(costs.step_s),
            "step_s": statistics.median(costs.step_s),
            "train_s": sum(costs.step_s),
            "wall_s": costs.wall_s,
            "checkpoint_s": sum(costs.checkpoint_s),
            "resumptions": costs.resumptions,
            "saved_bytes": seen.saved_bytes,
            "peak_bytes": costs.peak_bytes if seen.step_peak_bytes is None else seen.step_peak_bytes,
            "peak_definition": costs.peak_definition if seen.step_peak_bytes is None else STEP_PEAK,
        }
        return TrainResult(results, seen.curves, self._memory.record(), self._noise.record())

    def _evaluate(self) -> None:
        seen, curves = self.seen, self.seen.curves
        found = evaluate(
            self._model, self._task, self._data.evaluations, self._run.batch_size, self._precision, self._device
        )
        seen.found.append(asdict(found))
        curves["step"].append(seen.step)
        curves["train_loss"].append(seen.since.item() / (seen.step - sum(curves["step"][-2:-1])))
        curves["eval_loss"].append(found.loss)
        curves["score"].append(found.score)
        seen.since.zero_()


def measure_ledger(run: TextRun, data: Prepared) -> tuple[MemoryReport, int]:
    """What a step on the first examples of the file keeps, tensor by tensor, and the number of trained parameters."""
    model, forward = build_model(run, data.source)
    inputs, targets = _first(run, data.train)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return ledger_of(model.train(), forward, inputs, lambda logits: loss_of(TASKS[run.task], logits, targets)), count


def _first(run: TextRun, split: Encoded) -> tuple[dict[str, Tensor], Tensor]:
    """The first examples of the file: the same batch in every row and for every seed."""
    return split.batch(list(range(min(run.batch_size, len(split)))), torch.device(run.device))


def _step_memory(
    run: TextRun, model: nn.Module, forward: Callable[[dict[str, Tensor]], Tensor], split: Encoded
) -> StepMemory:
    inputs, targets = _first(run, split)
    return measure_step(model.train(), forward, inputs, lambda logits: loss_of(TASKS[run.task], logits, targets))
