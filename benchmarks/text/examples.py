"""Texts and labels, wherever they come from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch

from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.tasks import SCORE_RANGE, GlueTask


@dataclass(frozen=True, eq=False)
class Examples:
    """A split.

    Attributes:
        texts: One list for the single sentences, or two for the pairs.
        labels: Class numbers, or scores.
    """

    texts: tuple[list[str], ...]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def sample(self, count: int | None) -> Examples:
        """So many examples drawn at random, the same ones at every call, in their order; all of them for None."""
        if count is None or count >= len(self):
            return self
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:count].sort().values.tolist()
        return Examples(
            tuple([column[index] for index in chosen] for column in self.texts), [self.labels[i] for i in chosen]
        )


@dataclass(frozen=True, eq=False)
class TaskData:
    """A task's training split and evaluation splits; where they come from, in words."""

    task: GlueTask
    train: Examples
    evaluations: tuple[Examples, ...]
    source: str

    def sample(self, train: int | None, evaluation: int | None) -> TaskData:
        """The same with so many examples in each split."""
        return TaskData(
            self.task, self.train.sample(train), tuple(s.sample(evaluation) for s in self.evaluations), self.source
        )

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of all texts and labels: equal for the TSV files and the hub's copy of them."""
        digest = hashlib.sha256()
        for split in (self.train, *self.evaluations):
            digest.update(json.dumps([split.texts, split.labels]).encode())
        return digest.hexdigest()[:16]


def read_label(task: GlueTask, text: object, where: str) -> int | float:
    """A class number or a score from what a file or the hub says.

    Raises:
        BenchmarkError: When it is none of the task's labels.
    """
    if task.is_regression:
        try:
            score = float(str(text))
        except ValueError:
            score = float("nan")
        low, high = SCORE_RANGE
        if not low <= score <= high:
            raise BenchmarkError(
                f"The score of {task.name} must be a number in [{low:g}, {high:g}] (got {text!r} in {where}). "
                "Mend the file, or fetch it again."
            )
        return score
    if text in task.labels:
        return task.labels.index(str(text))
    raise BenchmarkError(
        f"The label of {task.name} must be one of {', '.join(task.labels)} (got {text!r} in {where}). "
        "A test split has no labels; otherwise mend the file, or fetch it again."
    )
