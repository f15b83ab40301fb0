"""Table 5 and Figure 7: from runs made by hand, and from the command line at tiny size."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stdout

import pytest

from benchmarks.harness.cli import parse
from benchmarks.harness.config import resolve
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.records import SCHEMA
from benchmarks.reports import fig7, gcn2_cost, table5
from benchmarks.reports.gcn2 import Runs, paper_row
from benchmarks.reports.page import write
from benchmarks.reports.run import harness_flags, main

REPORTS = (table5.REPORT, fig7.REPORT)


@pytest.fixture
def finished(run):
    """Makes a run of the protocol by a method as the command line names it, with a given accuracy in per cent."""

    environment = run()["environment"]

    def make(method="baseline", accuracy=70.0, seed=0, stand_ins=False, dataset="ogbn-arxiv", seconds=2.0, **changes):
        sweep = {"method": (method,), "seed": seed, "epochs": 2, **changes}
        config = resolve(sweep).expand("a fingerprint", "cpu")[0]
        return {
            "schema": SCHEMA,
            "key": config.key,
            "config": {name: getattr(config, name) for name in type(config).__dataclass_fields__},
            "settings": config.settings,
            "features_are_stand_ins": stand_ins,
            "dataset": {
                "name": dataset, "title": f"the {dataset}", "num_nodes": 169343, "num_edges": 1157799,
                "num_features": 128, "num_classes": 40, "split": "the published split",
            },
            "environment": environment,
            "results": {
                "test_accuracy": accuracy / 100, "best_epoch": 2, "epoch_s": seconds, "saved_total_bytes": 3 << 20
            },
            "curves": {"loss": [1.0, 0.5], "epochs": [1, 2], "valid": [0.1, 0.2], "test": [0.3, accuracy / 100]},
        }  # fmt: skip

    return make


@pytest.fixture
def runs(finished):
    """Three methods with two seeds each, and one epoch of a dense sketch."""
    trained = [
        finished(method, accuracy + 2 * seed, seed)
        for seed in range(2)
        for method, accuracy in (
            ("baseline", 70.0),
            ("exact:rate=0.125", 69.0),
            ("rmm:sketch=gaussian,center=off", 68.5),
        )
    ]
    return [*trained, finished("rmm:sketch=rademacher,center=off", 1.0, epochs=1, seconds=50.0)]


def test_the_papers_numbers_stand_beside_ours(runs, row, tmp_path):
    text = write(table5.page(runs), tmp_path, "table5")
    dash = "-"
    assert row(text, "baseline") == [
        "baseline", "2", "71.00 +- 1.41", dash, "Baseline", "72.87 +- 0.68", dash, "3", "2"
    ]  # fmt: skip
    assert row(text, "exact 0.125 of features int2")[3:7] == ["-1.00 [-1.00, -1.00]", "EXACT", "72.61 +- 0.27", "-0.26"]
    assert row(text, "rmm gaussian 0.1 fp32 uncentred")[3:7] == [
        "-1.50 [-1.50, -1.50]", "RMM Gauss", "70.99 +- 0.33", "-1.88"
    ]  # fmt: skip
    assert (tmp_path / "table5.png").stat().st_size > 1000


def test_a_row_that_was_only_timed_shows_in_the_costs_alone(runs, row, tmp_path):
    text = write(table5.page(runs), tmp_path, "table5")
    assert "rmm rademacher 0.1 fp32 uncentred" not in text
    assert row(text, "rademacher")[4:] == ["50", "25x", "1"]
    assert row(text, "gaussian")[4:] == ["2", "1x", "4"]
    assert row(text, "none")[4:] == ["2", "-", "4"]
    assert "Not trained: the paper's RMM Rademacher." in text
    alone = write(table5.page(runs[:1]), tmp_path, "table5")
    assert row(alone, "gaussian")[4:] == ["not run", "-", "0"] and "stand" not in alone.split("Not trained")[1]


def test_operations_are_those_of_the_formula(finished):
    run = finished(layers=2, hidden=8)
    run["dataset"] |= {"num_nodes": 100, "num_features": 5, "num_classes": 3}
    shapes = [(5, 8), (8, 8), (8, 8), (8, 3)]
    assert gcn2_cost.layers_of(run) == shapes
    numbers = 100 * sum(n + m for n, m in shapes)
    assert gcn2_cost.sketch_operations(run, "gaussian", 0.1) == 2 * 10 * numbers
    assert gcn2_cost.sketch_operations(run, "block_rademacher:block_rows=25", 0.1) == 2 * 10 * numbers / 4
    assert gcn2_cost.sketch_operations(run, "count_sketch", 0.1) == 2 * numbers
    assert gcn2_cost.sketch_operations(run, "row_sampling", 0.1) is None
    # With weights of its own for x_0 a convolution has two products; the features need no gradient.
    assert gcn2_cost.exact_operations(run) == 100 * (4 * 5 * 8 + 6 * (4 * 64 + 8 * 3))
    run["config"]["shared_weights"] = True
    assert gcn2_cost.exact_operations(run) == 100 * (4 * 5 * 8 + 6 * (2 * 64 + 8 * 3))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("baseline", "Baseline"),
        ("exact:rate=0.5", "EXACT"),
        ("rmm:sketch=gaussian,center=off", "RMM Gauss"),
        ("rmm:sketch=rademacher,center=off", "RMM Rademacher"),
        ("rmm:sketch=gaussian", None),
        ("rmm:sketch=gaussian,center=off,rate=0.2", None),
        ("rmm:sketch=gaussian,center=off,codec=int8", None),
        ("rmm:sketch=gaussian,center=off,anchor=on", None),
        ("rmm:center=off", None),
        ("rmm-lean:sketch=gaussian,center=off", None),
    ],
)
def test_only_what_the_paper_did_stands_beside_its_numbers(finished, method, expected):
    assert paper_row(finished(method)) == expected


def test_each_difference_to_the_protocol_is_said(finished, tmp_path):
    def text(**changes):
        return write(table5.page([finished(**changes)]), tmp_path, "table5")

    full = text(epochs=1000)
    assert "Other than in the published protocol" not in full and "stand-ins" not in full
    small = text(layers=3, hidden=64, bn_momentum=1.0, eval_every=4)
    assert "epochs 2 (the protocol's: 1000); eval every 4 (the protocol's: 1); layers 3 (the protocol's: 16)" in small
    assert "hidden 64 (the protocol's: 256); bn momentum 1.0 (the protocol's: 0.1)." in small
    assert "Runs of a row: 1; the paper's: 3." in small
    assert "the features are stand-ins, not OGB's. So compare differences" in text(stand_ins=True)
    assert "The data are the digits, not ogbn-arxiv. So compare differences" in text(dataset="digits")
    exact = write(table5.page([finished("exact:rate=0.25,exact-bits=4")]), tmp_path, "table5")
    assert "EXACT here keeps 0.25 of the features in 4 bits; the setting of the paper's row is not at hand." in exact
    instead = write(table5.page([finished("rmm:center=off")]), tmp_path, "table5")
    assert "Not trained: the paper's Baseline, EXACT, RMM Gauss, RMM Rademacher. In the place of a dense S" in instead


def test_curves(runs, row, tmp_path):
    text = write(fig7.page(runs), tmp_path, "fig7")
    assert row(text, "baseline") == ["baseline", "2", "71.00", "2", "71.00", "0.5000"]
    assert "Dashed: the accuracies of its Table 5." in text
    assert (tmp_path / "fig7.png").stat().st_size > 1000
    for run in runs:
        run["features_are_stand_ins"] = True
    assert "are of other data, and are not drawn" in write(fig7.page(runs), tmp_path, "fig7")


def test_runs_must_belong_together(finished):
    with pytest.raises(BenchmarkError, match=r"must hold runs of one hidden \(got 256 and 64\)\. Choose another --out"):
        Runs.of([finished(), finished(hidden=64)])


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.name)
def test_the_papers_protocol_is_the_default(report):
    sweep = parse(harness_flags(report, [], smoke=False), "")
    assert (sweep.layers, sweep.hidden, sweep.epochs, sweep.runs, sweep.rate) == (16, 256, 1000, 3, (0.1,))
    assert len(sweep.method) == 8 and sweep.dataset == "ogbn-arxiv"
    small = parse(harness_flags(report, ["--layers", "3", "--method", "baseline"], smoke=False), "")
    assert (small.layers, small.method) == (3, ("baseline",))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The folder in which both reports were made with --smoke, and what they printed."""
    out, printed = tmp_path_factory.mktemp("gcn2"), []
    for report in REPORTS:
        with redirect_stdout(io.StringIO()) as stream:
            assert main(report, ["--smoke", "--epochs", "1", "--runs", "1", "--out", str(out)]) == 0
        printed.append(stream.getvalue())
    return out, printed


def test_smoke(smoke):
    out, printed = smoke
    for report, shown in zip(REPORTS, printed, strict=True):
        text = (out / f"{report.name}.md").read_text()
        assert shown == f"{text}\nWrote {report.name}.md and {report.name}.png in {out}\n"
        assert "The paper's" in text.splitlines()[2] and "scikit-learn's digits: only that the report" in text
        command = f"bash scripts/reproduce_{report.name}.sh --smoke --epochs 1 --runs 1 --out {out}"
        assert text.rstrip().endswith(f"- Command: `{command}`")
    # The second report found the runs of the first.
    assert len((out / "records.jsonl").read_text().splitlines()) == 8


def test_a_report_can_be_made_again_without_training(smoke, tmp_path, monkeypatch):
    out, _ = smoke
    (tmp_path / "records.jsonl").write_bytes((out / "records.jsonl").read_bytes())
    harness = importlib.import_module(table5.REPORT.harness.module)
    monkeypatch.setattr(harness, "main", lambda argv: pytest.fail("the harness was run"))
    assert main(table5.REPORT, ["--report-only", "--out", str(tmp_path)]) == 0
    tables = [[line for line in (folder / "table5.md").read_text().splitlines() if "|" in line] for folder in smoke[:1]]
    assert tables == [[line for line in (tmp_path / "table5.md").read_text().splitlines() if "|" in line]]


def test_runs_of_another_harness_are_refused(tmp_path, capsys):
    (tmp_path / "records.jsonl").write_text(json.dumps({"schema": "another"}) + "\n")
    assert main(table5.REPORT, ["--report-only", "--out", str(tmp_path)]) == 2
    assert "must have schema" in capsys.readouterr().err
