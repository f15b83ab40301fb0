"""The table of tasks against fairseq's README and configuration files."""

from __future__ import annotations

import pytest

from benchmarks.text.config import resolve
from benchmarks.text.tasks import TASKS

# Learning rate, batch size, updates, warm-up updates.
FAIRSEQ = {
    "mnli": (1e-5, 32, 123873, 7432),
    "qnli": (1e-5, 16, 33112, 1986),  # the paper's batch
    "qqp": (1e-5, 32, 113272, 28318),
    "rte": (2e-5, 16, 2036, 122),
    "sst2": (1e-5, 32, 20935, 1256),
    "mrpc": (1e-5, 16, 2296, 137),
    "cola": (1e-5, 16, 5336, 320),
    "stsb": (2e-5, 16, 3598, 214),
    "wnli": (2e-5, 16, 2036, 122),  # not in the table: RTE's
}


def test_there_are_nine_tasks():
    assert set(TASKS) == set(FAIRSEQ)


@pytest.mark.parametrize("name", FAIRSEQ)
def test_settings_are_fairseqs(name: str):
    lr, batch_size, updates, warmup = FAIRSEQ[name]
    run = resolve({"task": (name,), "rate": (None,)}).expand(name, "cpu")[0]
    assert (run.lr, run.batch_size, run.epochs, run.weight_decay) == (lr, batch_size, 10, 0.1)
    assert run.warmup_share == pytest.approx(warmup / updates, rel=1e-12)


def test_what_is_given_wins_over_the_table_and_over_the_tiny_model():
    tiny = resolve({"task": ("rte",), "model": "tiny"}).expand("rte", "cpu")[0]
    assert (tiny.lr, tiny.epochs, tiny.batch_size) == (5e-4, 3, 16)
    given = {"task": ("rte",), "model": "tiny", "lr": 1e-3, "epochs": 7, "batch_size": 5}
    run = resolve(given).expand("rte", "cpu")[0]
    assert (run.lr, run.epochs, run.batch_size) == (1e-3, 7, 5)


def test_headlines():
    assert {name: task.headline for name, task in TASKS.items()} == {
        "cola": "matthews", "mnli": "accuracy", "mrpc": "accuracy", "qnli": "accuracy", "qqp": "accuracy",
        "rte": "accuracy", "sst2": "accuracy", "stsb": "mean", "wnli": "accuracy",
    }  # fmt: skip
    assert [task.num_outputs for task in TASKS.values()] == [2, 3, 2, 2, 2, 2, 2, 1, 2]
