"""Every report that runs the harness, from the command line to its files, at tiny size."""

from __future__ import annotations

import importlib
import json

import pytest

from benchmarks.reports.run import harness_flags, main

NAMES = ("table2", "table4", "table3_matmuls", "fig3_fig5", "fig4_fig6", "fig8")


def report_of(name):
    return importlib.import_module(f"benchmarks.reports.{name}").REPORT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


def out_of(folder, name):
    return folder / (report_of(name).folder or name)


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, folder, capsys):
    out = out_of(folder, name)
    assert main(report_of(name), ["--smoke", "--max-steps", "2", "--out", str(out)]) == 0
    text = (out / f"{name}.md").read_text()
    assert capsys.readouterr().out == f"{text}\nWrote {name}.md and {name}.png in {out}\n"
    assert text.startswith("# ") and "The paper's" in text.splitlines()[2]
    assert "The model is tiny" in text and "With --smoke" in text
    assert text.rstrip().endswith(f"- Command: `bash scripts/reproduce_{name}.sh --smoke --max-steps 2 --out {out}`")
    assert (out / f"{name}.png").stat().st_size > 1000


def test_table4_trains_what_table2_did_not(folder):
    """They share a folder, so CoLA's runs are not repeated."""
    runs = [json.loads(line) for line in (folder / "glue" / "records.jsonl").read_text().splitlines()]
    tasks = [run["config"]["task"] for run in runs]
    assert {task: tasks.count(task) for task in tasks} == {"cola": 6, "stsb": 6, "wnli": 6}
    assert len({run["key"] for run in runs}) == len(runs)


def test_a_report_can_be_made_again_without_training(folder, monkeypatch):
    from benchmarks import glue

    monkeypatch.setattr(glue, "main", lambda argv: pytest.fail("the harness was run"))
    (out_of(folder, "table2") / "table2.md").unlink()
    assert main(report_of("table2"), ["--report-only", "--out", str(out_of(folder, "table2"))]) == 0
    assert (out_of(folder, "table2") / "table2.md").exists()


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


def test_records_without_what_a_figure_needs_are_refused(folder, capsys):
    lacking = out_of(folder, "table2")
    lines = [json.loads(line) for line in (lacking / "records.jsonl").read_text().splitlines()]
    out = folder / "lacking"
    out.mkdir()
    (out / "records.jsonl").write_text("".join(json.dumps(line | {"noise": None}) + "\n" for line in lines))
    assert main(report_of("fig3_fig5"), ["--report-only", "--out", str(out)]) == 2
    assert "error: 'out' must hold sketched runs with --probe-every N (got none)" in capsys.readouterr().err
