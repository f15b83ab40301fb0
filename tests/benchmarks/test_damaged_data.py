"""Damaged data: one line that names the file, exit code 2, and never a traceback, a crash or a run on wrong data."""

from __future__ import annotations

import gzip
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from benchmarks.harness.datasets import load
from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.data import load as load_glue
from benchmarks.text.models import TinySize, open_model
from tests.benchmarks.test_datasets import write_planetoid
from tests.benchmarks.test_npz import plain


def damaged(content: bytes, count: int) -> Iterator[bytes]:
    """The content cut short, and with a bit flipped, at places that a seed decides."""
    generator = random.Random(0)
    for _ in range(count):
        yield content[: generator.randrange(len(content))]
        place = generator.randrange(len(content))
        yield content[:place] + bytes([content[place] ^ 1 << generator.randrange(8)]) + content[place + 1 :]
    yield b""
    yield bytes(len(content))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_a_damaged_npz_is_refused_or_is_the_same_data(tmp_path: Path, save):
    rng, path = np.random.default_rng(0), tmp_path / "g.npz"
    graph = sp.csr_matrix((rng.random((20, 20)) < 0.2).astype(np.float32)), sp.csr_matrix(rng.random((20, 7)))
    save(path, **plain(*graph, np.array([3, 5] * 10)))
    expected, content, refused = load(f"npz:{path}", ".").fingerprint, path.read_bytes(), 0
    for bad in damaged(content, 60):
        path.write_bytes(bad)
        try:
            assert load(f"npz:{path}", ".").fingerprint == expected  # in a field that nobody reads
        except BenchmarkError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 80


@pytest.fixture
def cora(tmp_path: Path) -> Path:
    write_planetoid(tmp_path / "Cora" / "raw")
    return tmp_path


def change(path: Path, update) -> None:
    value = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(update(value), protocol=2))


def out_of_bounds(matrix: sp.csr_matrix) -> sp.csr_matrix:
    matrix.indices[5] = 2**30  # what scipy would write to, and the process die of
    return matrix


class Runs:
    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("part", "update", "message"),
    [
        ("tx", out_of_bounds, r"column numbers in \[0, 4\)"),
        ("allx", lambda matrix: matrix[:-1], "the test nodes must follow the 699 others"),
        ("ty", lambda classes: classes.astype(float) * np.nan, "'ty' must hold finite numbers"),
        ("tx", lambda matrix: [1, 2], r"'tx' must be one CSR matrix \(got list"),
        ("graph", lambda graph: [1], "'graph' must be a dictionary of lists"),
        ("graph", lambda graph: {**graph, 0: [99999]}, r"'graph' must name nodes in \[0, 1700\) \(got \(0, 99999\)\)"),
        ("y", lambda classes: Runs(), "it asks for (posix|nt).mkdir"),
    ],
)
def test_damaged_planetoid_files_are_refused_and_run_nothing(cora: Path, monkeypatch, part, update, message):
    monkeypatch.chdir(cora)
    change(cora / "Cora" / "raw" / f"ind.cora.{part}", update)
    with pytest.raises(BenchmarkError, match=message):
        load("planetoid:cora", cora)
    assert not (cora / "ran").exists()


def test_test_nodes_that_were_cut_off_are_missed(cora: Path):
    path = cora / "Cora" / "raw" / "ind.cora.test.index"
    path.write_text(path.read_text()[:-200])
    with pytest.raises(BenchmarkError, match=r"must follow the 700 others, once each"):
        load("planetoid:cora", cora)


def test_a_flipped_bit_in_the_processed_file_is_seen(ogb_root: Path):
    expected = load("ogbn-arxiv", ogb_root).fingerprint
    path = max(ogb_root.rglob("processed/*.pt"), key=lambda found: found.stat().st_size)
    content = path.read_bytes()
    for place in (len(content) // 3, len(content) // 2, 2 * len(content) // 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(BenchmarkError, match=r"must be as it was written \(got damage.*Delete the folder"):
            load("ogbn-arxiv", ogb_root)
    path.write_bytes(content)
    assert load("ogbn-arxiv", ogb_root).fingerprint == expected


@pytest.mark.parametrize(
    ("table", "text", "message"),
    [
        ("raw/edge", "0,9999\n" * 150, r"node numbers in \[0, 60\) \(got 0 to 9999\)"),
        ("raw/edge", "0,-1\n" * 150, r"node numbers in \[0, 60\) \(got -1 to 0\)"),
        ("raw/node-label", "1\n" * 59, r"must have one class for each of 60 nodes \(got \[59\]\)"),
        ("raw/node-label", "-1\n" * 60, r"must have classes from 0 to -1 \(got -1 to -1\)"),
        ("raw/node-label", "nan\n" * 60, "could not be read"),
        ("split/time/train", "9999\n" * 5, r"must have training nodes in \[0, 60\) \(got 9999 to 9999\)"),
        ("split/time/test", "-3\n-4\n", r"must have test nodes in \[0, 60\) \(got -4 to -3\)"),
        ("split/time/valid", "1\n1\n", "must have no node twice in its split"),
        ("raw/node-feat", ("1," * 127 + "inf\n") * 60, "must have finite features"),
        ("raw/node-feat", ("1," * 127 + "1\n") * 50, r"must have features \[60, F\], a row for each node \(got \[50,"),
        ("raw/node-feat", ("a," * 127 + "b\n") * 60, "could not be read"),
    ],
)
def test_tables_of_ogb_that_do_not_fit_are_named(ogb_root: Path, table: str, text: str, message: str):
    with gzip.open(ogb_root / "ogbn_arxiv" / f"{table}.csv.gz", "wt") as file:
        file.write(text)
    with pytest.raises(BenchmarkError, match=message):
        load("ogbn-arxiv", ogb_root)


def test_a_torn_table_of_ogb_is_refused(ogb_root: Path):
    path = ogb_root / "ogbn_arxiv" / "raw" / "node-feat.csv.gz"
    for bad in damaged(path.read_bytes(), 3):
        path.write_bytes(bad)
        with pytest.raises(BenchmarkError, match="could not be read"):
            load("ogbn-arxiv", ogb_root)


def test_a_text_that_was_cut_short_is_told(tmp_path: Path, capsys):
    from benchmarks.text.synthetic import write_task

    write_task("cola", tmp_path)
    path = tmp_path / "CoLA" / "train.tsv"
    load_glue("cola", str(tmp_path))
    assert "line end" not in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:-3])
    load_glue("cola", str(tmp_path))
    assert f"{path}: does not end with a line end. If it was cut short, fetch it again." in capsys.readouterr().err


def test_damaged_files_of_a_model_are_told(tmp_path: Path, monkeypatch):
    from benchmarks.text import models
    from benchmarks.text.synthetic import write_task

    monkeypatch.setattr(models, "TINY_SIZE", TinySize(layers=1, hidden=32, heads=2, intermediate=64, vocabulary=300))
    write_task("sst2", tmp_path)
    data, folder = load_glue("sst2", str(tmp_path)), tmp_path / "model"
    source = open_model("tiny", data, None)
    source.build(2, 0).save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    open_model(str(folder), data, None)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        path = folder / name
        content = path.read_bytes()
        for bad in (content[: len(content) // 2], b"", bytes(len(content)), b"\xff\xfe" + content):
            path.write_bytes(bad)
            with pytest.raises(BenchmarkError, match="'model' must be something that transformers can load"):
                open_model(str(folder), data, None)
        path.write_bytes(content)
    vocabulary = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(vocabulary.replace('"merges": [', '"merges": [["zz", "qq"],'))
    with pytest.raises(BenchmarkError, match="out of vocabulary"):
        open_model(str(folder), data, None)
