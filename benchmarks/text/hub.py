"""GLUE from the Hugging Face hub, through `datasets`."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.text.examples import Examples, TaskData
from benchmarks.text.network import check_reachable, is_offline
from benchmarks.text.tasks import SCORE_RANGE, GlueTask

REPOSITORY = "nyu-mll/glue"
_INSTEAD = "Give GLUE's TSV files with --data-dir DIR."


def load_hub(task: GlueTask) -> TaskData:
    """Fetch a task, or take it from the cache of `datasets`.

    Raises:
        BenchmarkError: When `datasets` is not installed, the hub cannot be reached, or its copy has other columns.
    """
    datasets = require("datasets", extras="benchmarks,transformers")
    if not is_offline():
        check_reachable("task", f"{REPOSITORY} {task.name}", _INSTEAD)
    try:
        splits = datasets.load_dataset(REPOSITORY, task.name)
    except Exception as error:  # of many kinds: no connection, offline and no cached copy, no such file
        raise BenchmarkError(
            f"'{REPOSITORY}' could not be loaded from the hub{' while HF_HUB_OFFLINE is set' if is_offline() else ''} "
            f"({type(error).__name__}: {error}). {_INSTEAD}"
        ) from error
    train, *evaluations = (_read(task, splits, name) for name in ("train", *task.hub_evaluations))
    return TaskData(task, train, tuple(evaluations), f"{REPOSITORY} on the hub")


def _read(task: GlueTask, splits: Any, name: str) -> Examples:
    if name not in splits:
        raise BenchmarkError(f"'{REPOSITORY}' must have the split {name} (got {', '.join(splits)}). Use --data-dir.")
    split = splits[name]
    missing = [column for column in (*task.hub_text, "label") if column not in split.column_names]
    if missing:
        raise BenchmarkError(
            f"'{REPOSITORY}' must have the columns {', '.join((*task.hub_text, 'label'))} in {name} "
            f"(got {', '.join(split.column_names)}). Use --data-dir."
        )
    labels = list(split["label"])
    low, high = SCORE_RANGE if task.is_regression else (0, len(task.labels) - 1)
    wrong = [label for label in labels if not low <= label <= high]
    if wrong or not labels:
        raise BenchmarkError(
            f"The labels of {task.name} must lie in [{low:g}, {high:g}] (got {wrong[:1] or 'none'} in {name} of "
            f"'{REPOSITORY}'). Use --data-dir."
        )
    return Examples(tuple(list(split[column]) for column in task.hub_text), labels)
