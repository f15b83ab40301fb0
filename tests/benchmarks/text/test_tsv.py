"""GLUE's nine file layouts, and what is wrong with files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.data import load
from benchmarks.text.synthetic import write_task
from benchmarks.text.tasks import TASKS
from tests.benchmarks.text.conftest import LAYOUTS, write_glue


@pytest.mark.parametrize("name", TASKS)
def test_every_layout(name: str, tmp_path: Path):
    data = load(name, str(write_glue(tmp_path, name)))
    texts, label = LAYOUTS[name][3]
    assert len(data.evaluations) == (2 if name == "mnli" else 1)
    for split in (data.train, *data.evaluations):
        assert [column[0] for column in split.texts] == texts and split.labels == [label] and len(split) == 1
    assert data.source == f"TSV files in {tmp_path}"


@pytest.mark.parametrize("name", TASKS)
def test_made_up_sentences_are_in_the_layout_and_can_be_told_apart(name: str, tmp_path: Path):
    write_task(name, tmp_path)
    data = load(name, str(tmp_path))
    assert len(data.train) == 96
    assert len(set(data.train.labels)) > 1 and len(set(data.evaluations[0].labels)) > 1
    assert data.train.texts != data.evaluations[0].texts
    assert any('"' in text for text in data.train.texts[0])


def test_the_first_line_of_cola_is_an_example(tmp_path: Path):
    text = "gj04\t1\t\tOne.\nclc95\t0\t*\tTwo.\n"
    data = load("cola", str(write_glue(tmp_path, "cola", train=text)))
    assert data.train.texts == (["One.", "Two."],) and data.train.labels == [1, 0]


def test_quotes_windows_line_ends_and_odd_characters_are_text(tmp_path: Path):
    text = 'sentence\tlabel\r\n"open\t1\r\na\u2028b\x85c "\t0\r\n'
    data = load("sst2", str(write_glue(tmp_path, "sst2", train=text)))
    assert data.train.texts == (['"open', 'a\u2028b\x85c "'],) and data.train.labels == [1, 0]


def test_words_that_other_readers_take_for_missing_values_are_text(tmp_path: Path):
    text = "sentence\tlabel\nNA\t1\nnull\t0\n\t1\n"
    assert load("sst2", str(write_glue(tmp_path, "sst2", train=text))).train.texts == (["NA", "null", ""],)


def test_the_folder_of_the_task_will_do_and_so_will_its_name_in_small_letters(tmp_path: Path):
    write_glue(tmp_path, "rte")
    assert len(load("rte", str(tmp_path / "RTE")).train) == 1
    (tmp_path / "RTE").rename(tmp_path / "rte")
    assert len(load("rte", str(tmp_path)).train) == 1


def test_few_broken_lines_are_left_out_and_counted(tmp_path: Path, capsys):
    lines = ["sentence\tlabel", *["fine\t1"] * 200, "broken"]
    data = load("sst2", str(write_glue(tmp_path, "sst2", train="\n".join(lines))))
    assert len(data.train) == 200
    assert "left out 1 lines with too few fields" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("sst2", "sentence\tlabel\nfine\t1\nbroken\n", r"must have 2 fields a line, .* \(got 1 lines of 2"),
        ("sst2", "", r"train\.tsv' must hold examples \(got 0 lines\)"),
        ("sst2", "sentence\tlabel\n", r"must hold examples \(got 1 lines\)"),
        ("cola", "", r"must hold examples \(got 0 lines\)"),
        ("sst2", "text\tlabel\nfine\t1\n", r"must have the columns sentence, label \(got text, label\)"),
        ("mrpc", "0\t1\t2\ta\tb\n1\t3\t4\tc\td\n", r"have the columns #1 String, #2 String, Quality \(got 0, 1"),
        ("sst2", "sentence\tlabel\nfine\t1\nwell\t2\n", r"label of sst2 must be one of 0, 1 \(got '2' in line 3 of"),
        ("cola", "gj04\tyes\t\tOne.\n", r"label of cola must be one of 0, 1 \(got 'yes' in line 1 of"),
        ("mnli", None, r"must be one of entailment, neutral, contradiction \(got '-' in line 2 of"),
        ("stsb", None, r"score of stsb must be a number in \[0, 5\] \(got '5.001' in line 2 of"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file(name: str, text: str | None, message: str, tmp_path: Path):
    if text is None:
        _, header, line, _ = LAYOUTS[name]
        text = f"{header}\n{line.rpartition(chr(9))[0]}\t{'-' if name == 'mnli' else '5.001'}\n"
    write_glue(tmp_path, name, train=text)
    with pytest.raises(BenchmarkError, match=message):
        load(name, str(tmp_path))


@pytest.mark.parametrize("score", ["-0.1", "nan", "high", ""])
def test_scores_lie_between_0_and_5(score: str, tmp_path: Path):
    _, header, line, _ = LAYOUTS["stsb"]
    write_glue(tmp_path, "stsb", dev=f"{header}\n{line.rpartition(chr(9))[0]}\t{score}\n")
    with pytest.raises(BenchmarkError, match=re.escape(f"(got '{score}' in line 2 of")):
        load("stsb", str(tmp_path))


def test_a_file_that_is_not_utf8(tmp_path: Path):
    write_glue(tmp_path, "sst2")
    (tmp_path / "SST-2" / "dev.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(BenchmarkError, match=r"dev\.tsv' must be UTF-8 text"):
        load("sst2", str(tmp_path))


def test_missing_folders_and_files(tmp_path: Path):
    with pytest.raises(BenchmarkError, match=r"'data_dir' must be a folder \(got '.*nowhere'\)"):
        load("sst2", str(tmp_path / "nowhere"))
    write_glue(tmp_path, "mnli")
    (tmp_path / "MNLI" / "dev_mismatched.tsv").unlink()
    with pytest.raises(BenchmarkError, match=r"must hold MNLI/train\.tsv.* for mnli \(got .* without dev_mismatched"):
        load("mnli", str(tmp_path))
    with pytest.raises(
        BenchmarkError, match=r"must hold QQP/train\.tsv, QQP/dev\.tsv for qqp .* without train.tsv, dev"
    ):
        load("qqp", str(tmp_path))


def test_samples_are_the_same_at_every_call_and_keep_pairs_together(tmp_path: Path):
    write_task("rte", tmp_path)
    data = load("rte", str(tmp_path))
    few = data.sample(10, None)
    assert few.train.texts == data.sample(10, 5).train.texts and len(few.train) == 10
    assert few.evaluations[0] is data.evaluations[0] and len(data.sample(None, 5).evaluations[0]) == 5
    whole = list(zip(*data.train.texts, data.train.labels, strict=True))
    positions = [whole.index(example) for example in zip(*few.train.texts, few.train.labels, strict=True)]
    assert positions == sorted(positions) and positions != list(range(10))
    assert data.sample(1000, None).train is data.train


def test_fingerprint_follows_texts_and_labels(tmp_path: Path):
    first = load("sst2", str(write_glue(tmp_path / "a", "sst2")))
    assert first.fingerprint == load("sst2", str(write_glue(tmp_path / "b", "sst2"))).fingerprint
    for number, text in enumerate(("sentence\tlabel\na fine film\t0\n", "sentence\tlabel\na fine Film\t1\n")):
        other = load("sst2", str(write_glue(tmp_path / str(number), "sst2", dev=text)))
        assert other.fingerprint != first.fingerprint
