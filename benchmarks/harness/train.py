"""One run by the protocol: evaluated as it goes, reported at the best validation epoch."""

from __future__ import annotations

import sys

import torch
from tqdm import tqdm

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.kept_bytes import KeptBytes
from benchmarks.harness.loader_choice import FULL
from benchmarks.harness.measure import stopwatch
from benchmarks.harness.ranks import Ranks
from benchmarks.harness.result import TrainResult
from benchmarks.harness.run_checkpoints import RunCheckpoints
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.sampled_training import SampledTraining
from benchmarks.harness.training import Training, build_model, training_loss

__all__ = ["KeptBytes", "TrainResult", "build_model", "train", "training_loss"]


def train(
    run: RunConfig,
    dataset: NodeDataset,
    *,
    position: str = "",
    quiet: bool = False,
    checkpoints: RunCheckpoints | None = None,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Train once, from the start or from where a checkpoint stands.

    Args:
        run: What to do.
        dataset: The data: already on the run's device for the full batch, on CPU for sampled ones.
        position: Shown before the progress bar, such as ``[2/6]``.
        quiet: No progress bar.
        checkpoints: Where the run is stored between epochs; None stores nothing.  The first process writes and reads.
        ranks: This process, among those that train together.

    Returns:
        Accuracies, costs and curves.

    Raises:
        BenchmarkError: When a checkpoint cannot be read or written.
    """
    ranks = ranks or Ranks()
    state = None
    if checkpoints is not None:
        state = ranks.of_first(ranks.agree(lambda: checkpoints.read() if ranks.is_first else None))
    training = Training(run, dataset, state) if run.loader == FULL else SampledTraining(run, dataset, state, ranks)
    del state
    costs, curves, device = training.costs, training.curves, torch.device(run.device)
    name = f"{position} {run.label} seed {run.seed}".strip()
    if costs.resumptions and not quiet:
        print(f"{name}: goes on after epoch {curves.epoch}", file=sys.stderr)
    bar = tqdm(
        range(curves.epoch + 1, run.epochs + 1),
        initial=curves.epoch,
        total=run.epochs,
        desc=name,
        unit="epoch",
        file=sys.stderr,
        disable=quiet,
        dynamic_ncols=True,
    )
    with bar:
        for epoch in bar:
            training.run_epoch()
            valid = f"{100 * curves.valid[-1]:.2f}%" if curves.valid else "-"
            bar.set_postfix(loss=f"{curves.loss[-1]:.4f}", valid=valid, refresh=False)
            if ranks.is_first and checkpoints is not None and epoch < run.epochs and checkpoints.is_due(epoch):
                state = training.state_dict()
                with stopwatch(device, costs.checkpoint_s):
                    checkpoints.write(state)
                del state
    return training.result()
