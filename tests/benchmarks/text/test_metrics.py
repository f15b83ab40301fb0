"""Metrics against values by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.text.metrics import compute, headline, is_constant
from benchmarks.text.tasks import TASKS

RIGHT, PREDICTED = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0])  # tp 2, fn 1, fp 1, tn 2


def test_accuracy_f1_and_their_mean():
    found = compute(TASKS["mrpc"], [np.array([1, 1, 1, 1, 0, 0])], [RIGHT])  # tp 3, fp 1, tn 2
    assert found == pytest.approx({"accuracy": 5 / 6, "f1": 6 / 7, "mean": (5 / 6 + 6 / 7) / 2})
    assert headline(TASKS["mrpc"], found) == pytest.approx(100 * 5 / 6)


def test_matthews():
    found = compute(TASKS["cola"], [PREDICTED], [RIGHT])
    assert found == pytest.approx({"matthews": (2 * 2 - 1 * 1) / math.sqrt(3 * 3 * 3 * 3)})
    assert headline(TASKS["cola"], found) == pytest.approx(100 / 3)


def test_correlations():
    right, predicted = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0, 7.0])
    found = compute(TASKS["stsb"], [predicted], [right])
    # Deviations (-1.5, -.5, .5, 1.5) and (-2.5, -1.5, -.5, 4.5): 11 / sqrt(5 * 29).
    assert found == pytest.approx(
        {"pearson": 11 / math.sqrt(145), "spearman": 1.0, "mean": (11 / math.sqrt(145) + 1) / 2}
    )
    assert headline(TASKS["stsb"], found) == pytest.approx(100 * found["mean"])


def test_matched_and_mismatched():
    found = compute(TASKS["mnli"], [np.array([0, 1]), np.array([2, 0])], [np.array([0, 2]), np.array([2, 0])])
    assert found == {"accuracy": 0.5, "accuracy_matched": 0.5, "accuracy_mismatched": 1.0}
    assert headline(TASKS["mnli"], found) == 50


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.filterwarnings("error")
def test_constant_predictions_have_a_score(name: str):
    task = TASKS[name]
    right = np.array([0.0, 5.0, 2.0]) if task.is_regression else np.array([0, 1, 1])
    zeros = [np.zeros_like(right)] * len(task.evaluations)
    found = compute(task, zeros, [right] * len(task.evaluations))
    assert all(math.isfinite(value) for value in found.values())
    assert headline(task, found) == (0 if name in ("cola", "stsb") else pytest.approx(100 / 3))
    assert is_constant(zeros) and not is_constant([right])
