"""Files in GLUE's own layouts, and a tiny sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.text import models
from benchmarks.text.config import TextSweep, resolve
from benchmarks.text.models import ModelSource, TinySize, open_model
from benchmarks.text.sweep import _load, _prepare
from benchmarks.text.train import Prepared

_MNLI = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2\tlabel1"
)
_MNLI_ROW = "0\t31\t31n\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)"

# For every task: its folder, the header line as GLUE has it, a line, and what is to be read from that line.
LAYOUTS = {
    "cola": ("CoLA", None, 'gj04\t0\t*\tHe said "no.', (["He said \"no."], 0)),
    "mnli": (
        "MNLI", f"{_MNLI}\tgold_label", f"{_MNLI_ROW}\tA dog.\tAn animal.\tneutral\tcontradiction",
        (["A dog.", "An animal."], 2),
    ),
    "mrpc": (
        "MRPC", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\t"Yes, "he said.\tHe said "yes.',
        (['"Yes, "he said.', 'He said "yes.'], 1),
    ),
    "qnli": ("QNLI", "index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tentailment", (["Who?", "He."], 0)),
    "qqp": (
        "QQP", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "9\t1\t2\tWhy?\tWhy so?\t1",
        (["Why?", "Why so?"], 1),
    ),
    "rte": ("RTE", "index\tsentence1\tsentence2\tlabel", "0\tIt rains.\tIt is dry.\tnot_entailment",
            (["It rains.", "It is dry."], 1)),
    "sst2": ("SST-2", "sentence\tlabel", "a fine film\t1", (["a fine film"], 1)),
    "stsb": (
        "STS-B",
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tnews\tMSRvid\t2012test\t0001\tnone\tnone\tA plane.\tA jet.\t4.250",
        (["A plane.", "A jet."], 4.25),
    ),
    "wnli": ("WNLI", "index\tsentence1\tsentence2\tlabel", "0\tIt broke.\tThe cup broke.\t0",
             (["It broke.", "The cup broke."], 0)),
}  # fmt: skip
# MNLI's evaluation files have five labels of annotators before the one that counts.
_MNLI_DEV = (
    f"{_MNLI}\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
    f"{_MNLI_ROW}\tA dog.\tAn animal.\tneutral\tneutral\tneutral\tneutral\tneutral\tcontradiction",
)


def write_glue(root: Path, name: str, **texts: str) -> Path:
    """The task's files with one line each; ``texts`` replaces files by stem."""
    folder, header, line, _ = LAYOUTS[name]
    evaluations = ("dev_matched", "dev_mismatched") if name == "mnli" else ("dev",)
    files = {stem: "\n".join(filter(None, [header, line])) + "\n" for stem in ("train", *evaluations)}
    if name == "mnli":
        files |= {stem: "\n".join(_MNLI_DEV) + "\n" for stem in evaluations}
    (root / folder).mkdir(parents=True, exist_ok=True)
    for stem, text in (files | texts).items():
        (root / folder / f"{stem}.tsv").write_text(text, encoding="utf-8", newline="")
    return root


@pytest.fixture
def smoke() -> Callable[..., TextSweep]:
    """A sweep of a few steps on made-up sentences; keywords are fields of `TextSweep`."""

    def make(**given: object) -> TextSweep:
        small = {"smoke": True, "task": ("sst2",), "runs": 1, "probe_every": None, "track_memory": False}
        return resolve(small | given)

    return make


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model, tinier."""
    monkeypatch.setattr(models, "TINY_SIZE", TinySize(layers=1, hidden=64, heads=2, intermediate=128, vocabulary=400))


@pytest.fixture
def full_size(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model as it is, where bytes count."""
    monkeypatch.setattr(models, "TINY_SIZE", TinySize())


def prepare(sweep: TextSweep) -> tuple[Prepared, ModelSource]:
    """Data and model of the first task of a sweep."""
    data = _load(sweep)[sweep.task[0]]
    source = open_model(sweep.model, data, sweep.attention_dropout)
    return _prepare(data, source, sweep.max_length), source
