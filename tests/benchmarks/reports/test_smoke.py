"""Every report that runs the harness, from the command line to its files, at tiny size."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stdout

import pytest

from benchmarks.reports.run import harness_flags, main

pytest.importorskip("transformers")

NAMES = ("table2", "table4", "table3_matmuls", "fig3_fig5", "fig4_fig6", "fig8")


def report_of(name):
    return importlib.import_module(f"benchmarks.reports.{name}").REPORT


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Runs a report with --smoke, once however often it is asked for; returns its folder and what it printed."""
    root = tmp_path_factory.mktemp("reports")
    done = {}

    def run(name):
        if name not in done:
            out = root / (report_of(name).folder or name)
            with redirect_stdout(io.StringIO()) as printed:
                assert main(report_of(name), ["--smoke", "--max-steps", "2", "--out", str(out)]) == 0
            done[name] = out, printed.getvalue()
        return done[name]

    return run


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, smoke):
    out, printed = smoke(name)
    text = (out / f"{name}.md").read_text()
    assert printed == f"{text}\nWrote {name}.md and {name}.png in {out}\n"
    assert text.startswith("# ") and "The paper's" in text.splitlines()[2]
    assert "The model is tiny" in text and "With --smoke" in text
    assert text.rstrip().endswith(f"- Command: `bash scripts/reproduce_{name}.sh --smoke --max-steps 2 --out {out}`")
    assert (out / f"{name}.png").stat().st_size > 1000


def test_table4_trains_what_table2_did_not(smoke):
    """They share a folder, so CoLA's runs are not repeated."""
    smoke("table2")
    out, _ = smoke("table4")
    runs = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    tasks = [run["config"]["task"] for run in runs]
    assert {task: tasks.count(task) for task in tasks} == {"cola": 6, "stsb": 6, "wnli": 6}
    assert len({run["key"] for run in runs}) == len(runs)


def test_a_report_can_be_made_again_without_training(smoke, tmp_path, monkeypatch):
    from benchmarks import glue

    out, _ = smoke("table2")
    (tmp_path / "records.jsonl").write_bytes((out / "records.jsonl").read_bytes())
    monkeypatch.setattr(glue, "main", lambda argv: pytest.fail("the harness was run"))
    assert main(report_of("table2"), ["--report-only", "--out", str(tmp_path)]) == 0
    table = [line for line in (out / "table2.md").read_text().splitlines() if line.startswith("|")]
    assert [line for line in (tmp_path / "table2.md").read_text().splitlines() if line.startswith("|")] == table


def test_the_papers_setting_is_the_default_and_can_be_replaced():
    flags = harness_flags(report_of("table2"), ["--rate", "none", "0.3", "--sketch=count_sketch"], smoke=False)
    words = " ".join(flags)
    assert words.startswith("--task cola mnli mrpc qnli qqp rte sst2 stsb --model roberta-base ")
    assert words.endswith("--rate none 0.3 --sketch=count_sketch")
    assert words.count("--rate") == 1 and words.count("--sketch") == 1 and "--smoke" not in words


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("smoke", [False, True])
def test_the_harness_takes_the_flags(name, smoke):
    from benchmarks.text.cli import parse

    sweep = parse(harness_flags(report_of(name), [], smoke=smoke), "")
    assert sweep.method == ("rmm",) and sweep.center == "off" and sweep.smoke == smoke
    assert smoke or sweep.model == "roberta-base"


def test_errors_of_the_harness_end_the_report(tmp_path, capsys):
    assert main(report_of("table2"), ["--smoke", "--rate", "2", "--out", str(tmp_path / "out")]) == 2
    assert "'rate' must lie in (0, 1]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_report_needs_runs(tmp_path, capsys):
    assert main(report_of("fig8"), ["--report-only", "--out", str(tmp_path)]) == 2
    assert "'out' must hold finished runs (got none" in capsys.readouterr().err


def test_a_report_alone_takes_no_flags_of_the_harness(tmp_path, capsys):
    assert main(report_of("fig8"), ["--report-only", "--runs", "3", "--out", str(tmp_path)]) == 2
    assert "'report-only' must come alone (got --runs 3 besides)" in capsys.readouterr().err


def test_records_without_what_a_figure_needs_are_refused(smoke, tmp_path, capsys):
    lines = (smoke("fig3_fig5")[0] / "records.jsonl").read_text().splitlines()
    runs = [json.loads(line) | {"noise": None} for line in lines]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(run) + "\n" for run in runs))
    assert main(report_of("fig3_fig5"), ["--report-only", "--out", str(tmp_path)]) == 2
    assert "error: 'out' must hold sketched runs with --probe-every N (got none)" in capsys.readouterr().err
