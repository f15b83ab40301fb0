"""Loss and metrics on the evaluation sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.text.data import Encoded
from benchmarks.text.metrics import compute, headline, is_constant
from benchmarks.text.precision import Precision
from benchmarks.text.tasks import SCORE_RANGE, GlueTask


@dataclass(frozen=True)
class Evaluation:
    """One look at the evaluation sets.

    Attributes:
        score: The headline metric, times 100.
        metrics: All of them.
        loss: Mean over the first set.
        constant: Whether every prediction is the same.
    """

    score: float
    metrics: dict[str, float]
    loss: float
    constant: bool


def loss_of(task: GlueTask, logits: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Cross-entropy, or for a regression the squared error of scores that were brought to [0, 1]."""
    if task.is_regression:
        return F.mse_loss(logits.float().squeeze(-1), targets, reduction=reduction)
    return F.cross_entropy(logits.float(), targets, reduction=reduction)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: GlueTask,
    sets: Sequence[Encoded],
    batch_size: int,
    precision: Precision,
    device: torch.device,
) -> Evaluation:
    """Evaluate a model, which is in evaluation mode afterwards."""
    model.eval()
    predictions, losses = [], []
    for split in sets:
        order = split.lengths.argsort(stable=True)
        found, total = [], 0.0
        for indices in order.split(batch_size):
            inputs, targets = split.batch(indices.tolist(), device)
            with precision.casts():
                logits = model(**inputs).logits
            total += loss_of(task, logits, targets, "sum").item()
            found.append(logits.float().cpu())
        logits = torch.cat(found)
        values = logits.squeeze(-1) * SCORE_RANGE[1] if task.is_regression else logits.argmax(-1)
        back = np.empty(len(split), dtype=values.numpy().dtype)
        back[order.numpy()] = values.numpy()
        predictions.append(back)
        losses.append(total / len(split))
    metrics = compute(task, predictions, [split.labels for split in sets])
    return Evaluation(headline(task, metrics), metrics, losses[0], is_constant(predictions))
