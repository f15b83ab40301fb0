"""One fine-tuning run: AdamW by fairseq's settings, evaluated as it goes, reported at the best evaluation."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness.measure import PeakMemory, stopwatch
from benchmarks.text.batches import endless_batches
from benchmarks.text.data import Encoded
from benchmarks.text.evaluate import Evaluation, evaluate, loss_of
from benchmarks.text.memory import STEP_PEAK, MemoryTrack, StepMemory, measure_step
from benchmarks.text.methods import apply_method
from benchmarks.text.models import ModelSource
from benchmarks.text.noise import NoiseTrack
from benchmarks.text.precision import Precision
from benchmarks.text.run_config import TextRun
from benchmarks.text.schedule import lr_factor
from benchmarks.text.tasks import TASKS


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


def train(run: TextRun, data: Prepared, *, position: str = "", quiet: bool = False) -> TrainResult:
    """Train once.

    Args:
        run: What to do.
        data: Of its task.
        position: Shown before the progress bar, such as ``[2/6]``.
        quiet: Say nothing.

    Returns:
        Scores, costs and curves.
    """
    start = time.perf_counter()
    device, task = torch.device(run.device), TASKS[run.task]
    total, an_epoch = steps_of(run, len(data.train))
    every = run.eval_every_steps or an_epoch
    model, forward = build_model(run, data.source)
    precision = Precision(run.precision, device)
    of_a_step = _step_memory(run, model, forward, data.train)

    optimizer = torch.optim.AdamW(
        model.parameters(), lr=run.lr, betas=(0.9, 0.98), eps=1e-6, weight_decay=run.weight_decay, fused=True
    )
    noise = NoiseTrack(model, run)
    memory = MemoryTrack(model, device, min(an_epoch, total) if run.track_memory else 0)
    peak = PeakMemory(device)
    torch.manual_seed(run.seed)  # the converter may have drawn numbers
    peak.start()
    batches = endless_batches(data.train.lengths, run.batch_size, run.seed)
    curves: dict[str, list[float]] = {"step": [], "train_loss": [], "eval_loss": [], "score": []}
    found: list[Evaluation] = []
    step_s: list[float] = []
    examples = 0
    since = torch.zeros((), device=device)
    is_terminal = sys.stderr.isatty()
    name = f"{position} {run.label} seed {run.seed}".strip()
    with tqdm(total=total, desc=name, unit="step", disable=quiet or not is_terminal, dynamic_ncols=True) as bar:
        for step in range(1, total + 1):
            model.train()
            inputs, targets = data.train.batch(next(batches), device)
            for group in optimizer.param_groups:
                group["lr"] = run.lr * lr_factor(step - 1, total, run.warmup_share)
            with stopwatch(device, step_s):
                with memory.forward(step, inputs):
                    loss = loss_of(task, forward(inputs), targets)
                precision.backward(loss)
                noise.after_backward(precision.loss_scale)
                precision.step(optimizer)
                optimizer.zero_grad(set_to_none=True)
                since += loss.detach()
                del loss  # or the graph of this step would live on beside the next one's
            memory.after_step()
            examples += len(targets)
            bar.update()
            if step % every and step < total:
                continue
            found.append(evaluate(model, task, data.evaluations, run.batch_size, precision, device))
            curves["step"].append(step)
            curves["train_loss"].append(since.item() / (step - sum(curves["step"][-2:-1])))
            curves["eval_loss"].append(found[-1].loss)
            curves["score"].append(found[-1].score)
            since.zero_()
            bar.set_postfix(loss=f"{curves['train_loss'][-1]:.4f}", score=f"{found[-1].score:.2f}")
            if not (quiet or is_terminal):
                print(
                    f"{name}: step {step}/{total}, {_words(curves)}, {sum(step_s):.0f} s", file=sys.stderr, flush=True
                )
    best = max(range(len(found)), key=lambda i: found[i].score)
    results = {
        "score": found[best].score,
        "metrics": found[best].metrics,
        "last_metrics": found[-1].metrics,
        "best_step": curves["step"][best],
        "constant_predictions": found[best].constant,
        "steps": total,
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "examples_per_s": examples / sum(step_s),
        "step_s": statistics.median(step_s),
        "train_s": sum(step_s),
        "wall_s": time.perf_counter() - start,
        "saved_bytes": of_a_step.saved_bytes,
        "peak_bytes": peak.read_bytes() if of_a_step.peak_bytes is None else of_a_step.peak_bytes,
        "peak_definition": peak.definition if of_a_step.peak_bytes is None else STEP_PEAK,
    }
    return TrainResult(results, curves, memory.record(), noise.record())


def _step_memory(
    run: TextRun, model: nn.Module, forward: Callable[[dict[str, Tensor]], Tensor], split: Encoded
) -> StepMemory:
    """Of the first examples of the file: the same batch in every row and for every seed."""
    inputs, targets = split.batch(list(range(min(run.batch_size, len(split)))), torch.device(run.device))
    return measure_step(model.train(), forward, inputs, lambda logits: loss_of(TASKS[run.task], logits, targets))


def _words(curves: dict[str, list[float]]) -> str:
    return f"loss {curves['train_loss'][-1]:.4f}, score {curves['score'][-1]:.2f}"
