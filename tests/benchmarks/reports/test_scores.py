"""Tables 2 and 4 from runs made by hand."""

from __future__ import annotations

import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.reports import paper, table2, table4
from benchmarks.reports.page import write


@pytest.fixture
def runs(run):
    """Three seeds of two tasks, exact and at 0.1; WNLI in exact training alone."""
    scores = {
        ("cola", None): (60, 61, 62), ("cola", 0.1): (58, 60, 59), ("rte", None): (70, 71, 72),
        ("rte", 0.1): (70, 70, 70), ("wnli", None): (56,),
    }  # fmt: skip
    return [
        run(task, rate, seed, float(score)) for (task, rate), all_ in scores.items() for seed, score in enumerate(all_)
    ]


def test_table2_has_means_averages_and_the_papers(runs, row):
    ((_, text),) = table2.page(runs).tables
    assert row(text, "rate") == [
        "rate", "CoLA", "RTE", "average", "less exact", "paper's average", "paper's less exact"
    ]  # fmt: skip
    assert row(text, "exact") == ["exact", "61.00", "71.00", "66.00", "-", "85.58", "-"]
    assert row(text, "0.1") == ["0.1", "59.00", "70.00", "64.50", "-1.50", "84.56", "-1.02"]


def test_table2_names_what_is_missing(runs, tmp_path):
    text = write(table2.page(runs), tmp_path, "table2")
    assert "Not run: MNLI, MRPC, QNLI, QQP, SST-2, STS-B." in text
    assert "over CoLA, RTE (2 of the paper's 8 tasks): not comparable" in text
    assert "by task are not at hand" in text and "WNLI" not in text
    assert (tmp_path / "table2.md").read_text() == text and (tmp_path / "table2.png").stat().st_size > 1000


def test_a_full_table_2_is_comparable(run):
    text = "\n".join(table2.page([run(task, rate) for task in paper.TASKS for rate in (None, 0.5)]).notes[1:2])
    assert text.endswith("(8 of the paper's 8 tasks).")


def test_a_task_that_some_rows_lack_is_left_out_of_the_averages(runs, run, row):
    page = table2.page([*runs, run("sst2", None, 0, 99.0)])
    ((_, text),) = page.tables
    assert row(text, "exact")[1:5] == ["61.00", "71.00", "99.00", "66.00"]
    assert row(text, "0.1")[3] == "-"
    assert "Not every row has a score for: SST-2 (left out of averages)." in page.notes


def test_without_exact_training_there_is_nothing_to_compare_with(runs, row, tmp_path):
    page = table2.page([entry for entry in runs if entry["config"]["rate"]])
    ((_, text),) = page.tables
    assert row(text, "0.1")[4] == "-"
    page.draw(tmp_path / "picture.png")


def test_families_and_methods_are_told_apart(run, row):
    kinds = [run(rate=0.1), run(rate=0.1, sketch="count_sketch"), run(rate=0.5, method="rmm-lean", codec="int8"), run()]
    ((_, text),) = table2.page(kinds).tables
    names = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert names == ["exact", "rmm gaussian 0.1 fp32", "rmm count_sketch 0.1 fp32", "rmm-lean gaussian 0.5 int8"]


def test_table4_has_deviations_and_wnli(runs, row):
    page = table4.page(runs)
    ((_, text),) = page.tables
    assert row(text, "exact") == [
        "exact", "61.00 ± 1.00 (n=3)", "71.00 ± 1.00 (n=3)", "56.00 (n=1)", "66.00", "85.58"
    ]  # fmt: skip
    assert row(text, "0.1") == ["0.1", "59.00 ± 1.00 (n=3)", "70.00 ± 0.00 (n=3)", "-", "64.50", "84.56"]
    assert any("WNLI is never in it" in (note or "") for note in page.notes)


def test_a_run_without_a_score_does_not_count(run, row):
    ((_, text),) = table4.page([run(seed=0, score=60.0), run(seed=1, score=None)]).tables
    assert row(text, "exact")[1] == "60.00 (n=1)"


def test_differences_to_the_paper_are_said(run):
    settings = {"model": "tiny", "epochs": 3, "max_steps": 7, "train_examples": 50}
    odd = [run(**settings), run(rate=0.5, sketch="count_sketch", codec="int8", center=True, **settings)]
    notes = "\n".join(filter(None, table2.page(odd).notes))
    for words in (
        "The model is tiny, not the pretrained roberta-base", "Epochs of training: 3; the paper's: 10",
        "at most 7 steps",
        "Only 50 training examples", "named otherwise are count_sketch", "the paper does not centre", "stored as int8",
    ):  # fmt: skip
        assert words in notes
    notes = "\n".join(filter(None, table2.page([run(), run(rate=0.5)]).notes))
    assert "not the pretrained" not in notes and "the paper's: 10" not in notes and "does not centre" not in notes
    assert "a processor, 2 threads, torch 2, transformers 5, commit 0123456789ab." in notes


def test_runs_that_learnt_nothing_are_counted(run):
    constant = run(results={"score": 0.0, "train_s": 1.0, "constant_predictions": True})
    assert "1 of 2 runs predict one and the same for every example." in table2.page([constant, run(seed=1)]).notes


def test_there_must_be_runs_of_its_tasks(run):
    with pytest.raises(BenchmarkError, match=r"'out' must hold runs of at least one of cola, .*got none"):
        table2.page([run("wnli")])


@pytest.mark.parametrize(("name", "value"), [("epochs", 3), ("model", "tiny"), ("max_length", 64)])
def test_runs_of_one_task_must_agree(run, name, value):
    with pytest.raises(BenchmarkError, match=f"'out' must hold CoLA runs of one {name} .*Choose another --out"):
        table4.page([run(), run(rate=0.1, **{name: value})])


def test_sketched_runs_must_agree_on_centring_and_exact_ones_need_not_say(run):
    table2.page([run(), run(rate=0.5)])
    with pytest.raises(BenchmarkError, match=r"CoLA runs of one center \(got False and True\)"):
        table2.page([run(rate=0.5), run(rate=0.1, center=True)])
