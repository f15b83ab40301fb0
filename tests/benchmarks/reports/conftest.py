"""Finished runs made by hand, as ``records.jsonl`` would give them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Record = dict[str, Any]
ENVIRONMENT = {
    "device": "a processor", "threads": 2, "git_sha": "0123456789abcdef", "git_dirty": False,
    "packages": {"torch": "2", "transformers": "5", "datasets": None},
}  # fmt: skip


def record(task: str = "cola", rate: float | None = None, seed: int = 0, score: float | None = 60.0, **changes: Any):
    """One run of roberta-base by the paper's settings; ``changes`` replace fields of ``config`` or whole parts."""
    exact = rate is None
    config = {
        "task": task, "model": "roberta-base", "method": "baseline" if exact else "rmm", "rate": rate,
        "sketch": None if exact else "gaussian", "codec": None if exact else "fp32", "center": None if exact else False,
        "seed": seed, "epochs": 10, "max_steps": None, "batch_size": 16, "lr": 1e-5, "max_length": 128,
        "precision": "fp32", "train_examples": None, "eval_examples": None,
    }  # fmt: skip
    parts = {
        "config": config | {name: value for name, value in changes.items() if name in config},
        "data": {"source": "somewhere"},
        "results": {"score": score, "train_s": 100.0, "constant_predictions": False},
        "curves": {"step": [1, 2], "train_loss": [0.7, 0.6], "eval_loss": [0.65, 0.55], "score": [50.0, 60.0]},
        "memory": None,
        "noise": None,
        "environment": ENVIRONMENT,
    }
    return parts | {name: value for name, value in changes.items() if name not in config}


@pytest.fixture
def run() -> Callable[..., Record]:
    return record


def cells(text: str, *first: str) -> list[str]:
    """The cells of the one row of a Markdown table that begins with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    (found,) = [row for row in rows if row[: len(first)] == list(first)]
    return found


@pytest.fixture
def row() -> Callable[..., list[str]]:
    return cells
