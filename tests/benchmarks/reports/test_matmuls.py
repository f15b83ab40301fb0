"""Table 3, right, from runs made by hand."""

from __future__ import annotations

import pytest

from benchmarks.reports.page import write
from benchmarks.reports.table3_matmuls import clock, page


@pytest.fixture
def runs(run):
    def timed(seconds: float, score: float) -> dict:
        return {"results": {"score": score, "train_s": seconds}}

    return [
        run(**timed(100, 60)),
        run(rate=0.1, **timed(150, 58)),
        run(rate=0.1, sketch="sors:transform=dft", **timed(250, 59)),
        run(rate=0.1, sketch="count_sketch", **timed(90, 61)),
        run(rate=0.3, **timed(150, 58)),
        run("rte"),
    ]


def test_rows_stand_beside_the_papers(runs, row):
    ((_, text),) = page(runs).tables
    assert row(text, "exact") == ["exact", "60.00", "-", "1:40", "-", "none", "60.90", "-", "8:44", "-"]
    assert row(text, "gaussian 0.1") == [
        "gaussian 0.1", "58.00", "-2.00", "2:30", "1.50", "Gauss", "56.52", "-4.38", "10:03", "1.15"
    ]  # fmt: skip
    assert row(text, "sors:transform=dft 0.1")[4:] == ["2.50", "DFT", "47.62", "-13.28", "12:25", "1.42"]
    assert row(text, "count_sketch 0.1")[4:] == ["0.90", *["-"] * 5]
    assert row(text, "gaussian 0.3")[5:] == ["-"] * 5  # a rate that the paper does not have


def test_the_erratum_is_said_and_the_picture_drawn(runs, tmp_path):
    text = write(page(runs), tmp_path, "table3_matmuls")
    assert "samples with replacement" in text and "Here: CoLA." in text
    assert (tmp_path / "table3_matmuls.png").stat().st_size > 1000


def test_another_task_and_no_exact_training_are_said(runs, row):
    made = page([{**entry, "config": entry["config"] | {"task": "rte"}} for entry in runs[1:4]])
    notes = "\n".join(filter(None, made.notes))
    assert "No run of exact training" in notes and "The task is RTE" in notes
    assert row(made.tables[0][1], "gaussian 0.1")[2:5] == ["-", "2:30", "-"]


def test_clock():
    assert [clock(value) for value in (None, 0.25, 59.6, 60, 524.4)] == ["-", "0:00.2", "1:00", "1:00", "8:44"]
