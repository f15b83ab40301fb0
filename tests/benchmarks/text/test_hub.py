"""Data and models of the hub, without a network."""

from __future__ import annotations

import types
from pathlib import Path

import pytest

from benchmarks.glue import main
from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.data import load
from tests.benchmarks.text.conftest import write_glue

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def hub_offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def fake(monkeypatch: pytest.MonkeyPatch, **columns: list) -> list[tuple[str, ...]]:
    """Have `load_dataset` return the same split for each name; returns what it was asked for."""
    asked = []
    split = datasets.Dataset.from_dict(columns)

    def load_dataset(*arguments: str) -> dict:
        asked.append(arguments)
        names = ("train", "validation", "validation_matched", "validation_mismatched")
        return dict.fromkeys(names, split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_hubs_copy_is_the_files_copy(tmp_path: Path, monkeypatch):
    asked = fake(monkeypatch, premise=["A dog."], hypothesis=["An animal."], label=[2], idx=[0])
    data = load("mnli", None)
    assert asked == [("nyu-mll/glue", "mnli")]
    assert data.train.texts == (["A dog."], ["An animal."]) and data.train.labels == [2]
    assert len(data.evaluations) == 2 and data.source == "nyu-mll/glue on the hub"
    assert data.fingerprint == load("mnli", str(write_glue(tmp_path, "mnli"))).fingerprint


def test_scores(monkeypatch):
    fake(monkeypatch, sentence1=["a"], sentence2=["b"], label=[4.25], idx=[0])
    assert load("stsb", None).train.labels == [4.25]


def test_wrong_columns_splits_and_labels(monkeypatch):
    fake(monkeypatch, text=["a"], label=[1])
    with pytest.raises(BenchmarkError, match=r"must have the columns sentence, label in train \(got text, label\)"):
        load("sst2", None)
    fake(monkeypatch, sentence=["a", "b"], label=[1, -1])
    with pytest.raises(BenchmarkError, match=r"labels of sst2 must lie in \[0, 1\] \(got \[-1\] in train of"):
        load("sst2", None)
    fake(monkeypatch, sentence=[], label=[])
    with pytest.raises(BenchmarkError, match=r"labels of sst2 must lie in \[0, 1\] \(got none in train of"):
        load("sst2", None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: {"test": None})
    with pytest.raises(BenchmarkError, match=r"must have the split train \(got test\)"):
        load("sst2", None)


def test_offline_and_not_in_the_cache(monkeypatch):
    def refuse(*arguments: str) -> None:
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        BenchmarkError, match=r"while HF_HUB_OFFLINE is set \(ConnectionError: offline.* --data-dir DIR"
    ):
        load("sst2", None)


class Session:
    """Stands for the hub's client: answers, or does not."""

    def __init__(self, answers: bool) -> None:
        self.answers, self.asked = answers, 0

    def head(self, url: str, timeout: float) -> object:
        assert url == huggingface_hub.constants.ENDPOINT and timeout <= 10
        self.asked += 1
        if not self.answers:
            raise OSError("name not known")
        return types.SimpleNamespace(status_code=200)


def test_without_a_network_the_hub_is_asked_once(monkeypatch):
    fake(monkeypatch, sentence=["a"], label=[1])
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    session = Session(answers=False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    with pytest.raises(
        BenchmarkError, match=r"the hub in reach \(got 'nyu-mll/glue sst2'; .*: name not known\).*data-dir"
    ):
        load("sst2", None)
    assert session.asked == 1
    session.answers = True
    assert len(load("sst2", None).train) == 1


def test_models_that_are_not_there(tmp_path: Path, monkeypatch, capsys):
    command = ["--task", "sst2", "--data-dir", str(write_glue(tmp_path, "sst2")), "--model"]
    assert main([*command, "no-such-model"]) == 2
    assert "while HF_HUB_OFFLINE is set (got 'no-such-model', not in the hub's cache)" in capsys.readouterr().err
    assert main([*command, "./no/such/folder"]) == 2
    assert "'model' must exist (got './no/such/folder', no such folder)" in capsys.readouterr().err
    assert main([*command, str(tmp_path)]) == 2
    assert "'model' must be something that transformers can load for classification" in capsys.readouterr().err
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: Session(answers=False))
    assert main([*command, "no-such-model"]) == 2
    assert "'model' must be on the hub, and the hub in reach (got 'no-such-model'" in capsys.readouterr().err
