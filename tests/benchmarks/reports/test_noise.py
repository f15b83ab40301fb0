"""Figures 3 and 5 from runs made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.reports.fig3_fig5 import page, series_of
from benchmarks.reports.page import write

NOISE = {
    "layer": "encoder.3.dense", "step": [0, 10], "sgd_variance": [2.0, 4.0], "paper_rmm_variance": [3.0, 2.0],
    "rmm_variance": [5.0, 200.0], "alignment": [0.25, 0.5], "gradient_norm2": [1.0, 1.0],
}  # fmt: skip


def test_both_sides_of_the_bound(run):
    series = series_of(run(rate=0.5, noise=NOISE))
    assert series["left"].tolist() == [0.5 * 5 / 2, 0.5 * 200 / 4]
    assert series["paper_left"].tolist() == [0.75, 0.25]
    assert series["bound"].tolist() == [5.0, 3.0]


def test_report(run, row, tmp_path):
    text = write(page([run(rate=0.5, noise=NOISE, batch_size=64)]), tmp_path, "fig3_fig5")
    assert row(text, "D2_RMM by the paper's formula (11)")[1:4] == ["3", "2", "2.5"]
    assert row(text, "D2_RMM, exact")[1:] == ["5", "200", "102.5", "24.5 to 180.5"]
    assert "Here: encoder.3.dense, CoLA, batches of 64, rate 0.5." in text
    assert "wrong sign" in text and "does not hold in general" in text
    assert "at 100 % of the 2 probed steps with D2_RMM by (11), at 50 % with the exact one" in text
    assert (tmp_path / "fig3_fig5.png").stat().st_size > 1000


def test_what_is_not_finite_is_left_out_of_the_median(run, row):
    noise = NOISE | {"rmm_variance": [None, 4.0], "sgd_variance": [2.0, 0.0]}
    ((_, text),) = page([run(rate=0.5, noise=noise)]).tables
    assert row(text, "D2_RMM, exact") == ["D2_RMM, exact", "nan", "4", "4", "4 to 4"]
    assert np.isinf(series_of(run(rate=0.5, noise=noise))["left"][1])


def test_probes_are_needed(run):
    with pytest.raises(BenchmarkError, match=r"must hold sketched runs with --probe-every N \(got none\)"):
        page([run(noise=NOISE), run(rate=0.5)])


def test_one_row_is_needed(run):
    with pytest.raises(BenchmarkError, match=r"of one task and row \(got cola, 0.5, 0.1\)"):
        page([run(rate=rate, noise=NOISE) for rate in (0.1, 0.5)])
