"""Figures 4, 6 and 8 from runs made by hand."""

from __future__ import annotations

import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.reports import fig4_fig6, fig8
from benchmarks.reports.curves import mean_curve
from benchmarks.reports.page import write

GIB = 2**30


def curves(train, evaluation):
    steps = [100 * (number + 1) for number in range(len(train))]
    return {"step": steps, "train_loss": train, "eval_loss": evaluation, "score": [0.0] * len(train)}


def tracked(*used):
    return {
        "step": list(range(1, len(used) + 1)),
        "bytes": [GIB * value for value in used],
        "definition": "what counts",
    }


def test_mean_and_deviation_over_the_steps_that_all_runs_have(run):
    runs = [run(curves=curves([1.0, 2.0], [3.0, 5.0])), run(seed=1, curves=curves([2.0, 4.0, 9.0], [4.0, 7.0, 9.0]))]
    steps, mean, spread = mean_curve(runs, "curves", "eval_loss")
    assert steps.tolist() == [100, 200] and mean.tolist() == [3.5, 6.0]
    assert spread.tolist() == pytest.approx([0.5**0.5, 2**0.5])
    assert mean_curve(runs[:1], "curves", "train_loss")[2].tolist() == [0.0, 0.0]


def test_losses(run, row, tmp_path):
    runs = [
        run("mnli", curves=curves([0.9, 0.5, 0.3], [0.6, 0.4, 0.5])),
        run("mnli", 0.1, curves=curves([0.9, 0.6, 0.4], [0.7, 0.6, 0.55])),
        run("mnli", 0.1, 1, curves=curves([0.9, 0.6, 0.6], [0.7, 0.6, None])),
    ]
    text = write(fig4_fig6.page(runs), tmp_path, "fig4_fig6")
    assert row(text, "MNLI", "exact") == ["MNLI", "exact", "1", "0.3000", "0.4000", "200", "-"]
    assert row(text, "MNLI", "0.1") == ["MNLI", "0.1", "2", "0.5000", "0.6000", "200", "+0.2000"]
    assert "Not run: QNLI." in text and "Here: MNLI." in text
    assert (tmp_path / "fig4_fig6.png").stat().st_size > 1000


def test_losses_need_an_evaluation(run):
    with pytest.raises(BenchmarkError, match=r"must hold runs with an evaluation \(got none\)"):
        fig4_fig6.page([run(curves=curves([], []))])


def test_memory(run, row, tmp_path):
    runs = [
        run(epochs=1, memory=tracked(1.0, 2.0, 3.0)), run(rate=0.5, epochs=1, memory=tracked(1.0, 1.0, 2.5)), run("rte")
    ]  # fmt: skip
    text = write(fig8.page(runs), tmp_path, "fig8")
    assert row(text, "CoLA", "exact") == ["CoLA", "exact", "3", "2", "3", "-", "-"]
    assert row(text, "CoLA", "0.5") == ["CoLA", "0.5", "3", "1.5", "2.5", "25.0", "16.7"]
    assert "Memory: what counts." in text and "RTE" in text.split("Not run:")[1]
    assert "Epochs of training" not in text  # the figure is about one
    assert (tmp_path / "fig8.png").stat().st_size > 1000


def test_memory_must_be_tracked(run):
    with pytest.raises(BenchmarkError, match=r"must hold runs with --track-memory \(got none\)"):
        fig8.page([run()])
