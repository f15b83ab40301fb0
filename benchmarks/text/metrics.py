"""GLUE's metrics, by scikit-learn and scipy."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from benchmarks.harness.errors import require
from benchmarks.text.tasks import GlueTask

if TYPE_CHECKING:
    import numpy as np


def compute(task: GlueTask, predictions: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
    """The task's metrics, fractions or correlations.

    Where a task has several evaluation sets (MNLI), each has its own numbers, named ``accuracy_matched`` and so on, and
    the plain name stands for the first.  Where it has several metrics, ``mean`` is their mean.  A correlation of
    constant predictions does not exist and counts as 0, as Matthews' coefficient does by definition.

    Args:
        task: What was predicted.
        predictions: Class numbers or scores of every evaluation set.
        labels: The right ones.

    Returns:
        Values by name.
    """
    found: dict[str, float] = {}
    for name, predicted, right in zip(task.evaluations, predictions, labels, strict=True):
        values = {metric: _finite(_METRICS[metric](right, predicted)) for metric in task.metrics}
        if len(values) > 1:
            values["mean"] = sum(values.values()) / len(values)
        for metric, value in values.items():
            found.setdefault(metric, value)
            if len(task.evaluations) > 1:
                found[f"{metric}_{name.removeprefix('dev_')}"] = value
    return found


def headline(task: GlueTask, metrics: Mapping[str, float]) -> float:
    """The one number a row of the table has for a run, times 100."""
    return 100 * metrics[task.headline]


def is_constant(predictions: Sequence[np.ndarray]) -> bool:
    """Whether a model predicts one and the same, also nan, for every example of the first evaluation set."""
    return len(require("numpy").unique(predictions[0])) == 1


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _accuracy(right: np.ndarray, predicted: np.ndarray) -> float:
    return require("sklearn.metrics").accuracy_score(right, predicted)


def _f1(right: np.ndarray, predicted: np.ndarray) -> float:
    return require("sklearn.metrics").f1_score(right, predicted, zero_division=0.0)


def _matthews(right: np.ndarray, predicted: np.ndarray) -> float:
    return require("sklearn.metrics").matthews_corrcoef(right, predicted)


def _pearson(right: np.ndarray, predicted: np.ndarray) -> float:
    return _correlation("pearsonr", right, predicted)


def _spearman(right: np.ndarray, predicted: np.ndarray) -> float:
    return _correlation("spearmanr", right, predicted)


def _correlation(name: str, right: np.ndarray, predicted: np.ndarray) -> float:
    if not all(map(math.isfinite, predicted)):  # older releases of scipy raise
        return math.nan
    with warnings.catch_warnings():  # of constant predictions, which the caller reports
        warnings.simplefilter("ignore")
        return getattr(require("scipy.stats"), name)(right, predicted).statistic


_METRICS = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
}
