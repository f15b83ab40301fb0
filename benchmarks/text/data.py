"""A task's data, from TSV files or from the hub, as token numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.text.examples import Examples, TaskData
from benchmarks.text.hub import load_hub
from benchmarks.text.tasks import SCORE_RANGE, TASKS, GlueTask
from benchmarks.text.tsv import load_tsv

_CHUNK = 10_000


def load(name: str, data_dir: str | None) -> TaskData:
    """Read a task's data from a folder of TSV files, or from the hub for None."""
    task = TASKS[name]
    return load_hub(task) if data_dir is None else load_tsv(task, Path(data_dir))


@dataclass(frozen=True, eq=False)
class Encoded:
    """A split in token numbers.

    Attributes:
        tokens: Of all examples, one after the other.
        types: Which text each token belongs to; None for models that do not ask.
        starts: Where each example starts in `tokens`, and the end of the last one.
        targets: Class numbers [n], or scores in [0, 1] [n].
        labels: Class numbers, or scores as they were given.
        pad: The token number that fills up a batch.
    """

    tokens: np.ndarray
    types: np.ndarray | None
    starts: np.ndarray
    targets: Tensor
    labels: np.ndarray
    pad: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Tokens in each example [n]."""
        return torch.from_numpy(np.diff(self.starts))

    def batch(self, indices: list[int], device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
        """The model's inputs, padded to the longest of these examples, and their targets."""
        parts = [slice(self.starts[index], self.starts[index + 1]) for index in indices]
        lengths = torch.tensor([part.stop - part.start for part in parts])
        longest = int(lengths.max())
        inputs = {
            "input_ids": _padded(self.tokens, parts, longest, self.pad),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }
        if self.types is not None:
            inputs["token_type_ids"] = _padded(self.types, parts, longest, 0)
        return {name: value.to(device) for name, value in inputs.items()}, self.targets[indices].to(device)


def encode(task: GlueTask, examples: Examples, tokenizer: Any, max_length: int) -> Encoded:
    """Turn texts into token numbers; of a pair that is too long, the longer text is cut first."""
    tokens: list[np.ndarray] = []
    types: list[np.ndarray] = []
    for start in range(0, len(examples), _CHUNK):
        texts = [column[start : start + _CHUNK] for column in examples.texts]
        found = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        tokens += [np.array(ids, dtype=np.int32) for ids in found["input_ids"]]
        types += [np.array(ids, dtype=np.int32) for ids in found.get("token_type_ids", [])]
    starts = np.concatenate([[0], np.cumsum([len(ids) for ids in tokens])])
    labels = np.array(examples.labels)
    targets = torch.from_numpy(labels)
    return Encoded(
        np.concatenate(tokens),
        np.concatenate(types) if types else None,
        starts,
        (targets / SCORE_RANGE[1]).float() if task.is_regression else targets,
        labels,
        tokenizer.pad_token_id,
    )


def _padded(values: np.ndarray, parts: list[slice], longest: int, fill: int) -> Tensor:
    out = torch.full((len(parts), longest), fill, dtype=torch.int64)
    for row, part in zip(out, parts, strict=True):
        row[: part.stop - part.start] = torch.from_numpy(values[part])
    return out
