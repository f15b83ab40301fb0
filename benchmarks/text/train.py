"""One fine-tuning run: AdamW by fairseq's settings, evaluated as it goes, reported at the best evaluation."""

from __future__ import annotations

import sys

import torch
from tqdm import tqdm

from benchmarks.harness.measure import stopwatch
from benchmarks.harness.run_checkpoints import RunCheckpoints
from benchmarks.text.run_config import TextRun
from benchmarks.text.training import FineTuning, Prepared, TrainResult, build_model, steps_of

__all__ = ["Prepared", "TrainResult", "build_model", "steps_of", "train"]


def train(
    run: TextRun,
    data: Prepared,
    *,
    position: str = "",
    quiet: bool = False,
    checkpoints: RunCheckpoints | None = None,
) -> TrainResult:
    """Train once, from the start or from where a checkpoint stands.

    Args:
        run: What to do.
        data: Of its task.
        position: Shown before the progress bar, such as ``[2/6]``.
        quiet: Say nothing.
        checkpoints: Where the run is stored between steps; None stores nothing.

    Returns:
        Scores, costs and curves.

    Raises:
        BenchmarkError: When a checkpoint cannot be read or written.
    """
    state = None if checkpoints is None else checkpoints.read()
    tuning = FineTuning(run, data, state)
    del state
    seen, costs, total, device = tuning.seen, tuning.costs, tuning.total, torch.device(run.device)
    is_terminal = sys.stderr.isatty()
    name = f"{position} {run.label} seed {run.seed}".strip()
    if costs.resumptions and not quiet:
        print(f"{name}: goes on after step {seen.step}", file=sys.stderr)
    with tqdm(
        total=total,
        initial=seen.step,
        desc=name,
        unit="step",
        disable=quiet or not is_terminal,
        dynamic_ncols=True,
    ) as bar:
        while seen.step < total:
            evaluated = tuning.run_step()
            bar.update()
            if evaluated:
                loss, score = seen.curves["train_loss"][-1], seen.curves["score"][-1]
                bar.set_postfix(loss=f"{loss:.4f}", score=f"{score:.2f}")
                if not (quiet or is_terminal):
                    words = f"step {seen.step}/{total}, loss {loss:.4f}, score {score:.2f}, {sum(costs.step_s):.0f} s"
                    print(f"{name}: {words}", file=sys.stderr, flush=True)
            if checkpoints is not None and seen.step < total and checkpoints.is_due(seen.step):
                state = tuning.state_dict()
                with stopwatch(device, costs.checkpoint_s):
                    checkpoints.write(state)
                del state
    return tuning.result()
