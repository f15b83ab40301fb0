"""ogbn-arxiv by the real loader and Evaluator, on a small graph in OGB's own format."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.harness.datasets import load
from benchmarks.ogbn_arxiv import main

SMALL = ["--method", "baseline", "--layers", "2", "--hidden", "8", "--epochs", "3", "--runs", "2"]


def run(root: Path, out: Path) -> list[dict]:
    assert main([*SMALL, "--root", str(root), "--out", str(out)]) == 0
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def test_end_to_end_twice(ogb_root: Path, tmp_path: Path, capsys):
    first = run(ogb_root, tmp_path / "out")
    assert [record["config"]["seed"] for record in first] == [0, 1]
    assert not any(record["features_are_stand_ins"] for record in first)
    assert first[0]["dataset"]["title"] == "ogbn-arxiv" and first[0]["dataset"]["split"] == "the published split"
    assert "| baseline |" in capsys.readouterr().out
    assert "GPT" not in (tmp_path / "out" / "table.md").read_text()
    # The second time ogb reads the file it wrote the first time, by another code path.
    again = run(ogb_root, tmp_path / "again")
    assert [record["curves"] for record in again] == [record["curves"] for record in first]


def test_data_are_those_in_the_files(ogb_root: Path):
    dataset = load("ogbn-arxiv", ogb_root)
    assert dataset.x.shape == (60, 128) and dataset.x.dtype == torch.float32
    assert torch.equal(dataset.y, torch.arange(60) % 40) and dataset.num_classes == 40
    split = dataset.split_for(seed=5)
    assert [len(part) for part in (split.train, split.valid, split.test)] == [30, 10, 20]
    assert torch.equal(torch.cat([split.train, split.valid, split.test]).sort().values, torch.arange(60))


def test_the_evaluator_agrees_with_a_count(ogb_root: Path):
    dataset = load("ogbn-arxiv", ogb_root)
    logits = torch.nn.functional.one_hot(dataset.y, 40).float()
    logits[:6] = logits[:6].roll(1, dims=1)
    assert dataset.evaluate(logits, torch.arange(60)) == pytest.approx(54 / 60)
    assert dataset.evaluate(logits, torch.arange(6, 20)) == 1


def test_stand_in_features_are_named_everywhere(ogb_root: Path, tmp_path: Path, capsys, monkeypatch):
    (ogb_root / "ogbn_arxiv" / "FEATURES_ARE_STAND_INS.txt").write_text("made up")
    titles = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, title, **_: titles.append(title))
    records = run(ogb_root, tmp_path / "out")
    name = "ogbn-arxiv graph, GPT-prediction features"
    assert all(record["features_are_stand_ins"] for record in records)
    assert all(record["dataset"]["title"] == name for record in records)
    assert name in capsys.readouterr().out
    assert name in (tmp_path / "out" / "table.md").read_text()
    assert len(titles) == 1 and titles[0].startswith(name)


def test_a_damaged_file_is_named_without_a_traceback(ogb_root: Path, tmp_path: Path, capsys):
    (ogb_root / "ogbn_arxiv" / "raw" / "node-feat.csv.gz").write_bytes(b"not gzip")
    assert main([*SMALL, "--root", str(ogb_root), "--out", str(tmp_path / "out")]) == 2
    assert "could not be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_loading_leaves_the_safe_globals_as_they_were(ogb_root: Path):
    before = set(torch.serialization.get_safe_globals())
    load("ogbn-arxiv", ogb_root)
    assert set(torch.serialization.get_safe_globals()) == before


def test_importing_ogb_starts_no_thread_and_hides_no_module():
    code = (
        "import sys, threading\n"
        "from benchmarks.harness.datasets.arxiv import _import_ogb\n"
        "before = threading.active_count()\n"
        "assert _import_ogb().Evaluator\n"
        "from ogb import version\n"
        "assert version.check_outdated is None and threading.active_count() == before\n"
        "assert 'outdated' not in sys.modules\n"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=120)
