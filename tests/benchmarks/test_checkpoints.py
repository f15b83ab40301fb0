"""Checkpoint files: what is damaged, of another version or another run is refused; what was there is not lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from benchmarks.harness import checkpoints
from benchmarks.harness.checkpoints import checkpoint_path, checkpoints_in, read_checkpoint, write_checkpoint
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.training import Training
from benchmarks.ogbn_arxiv import main
from tests.benchmarks.test_resume import equal

STATE = {
    "tensor": torch.arange(1000.0).view(10, 100).T, "half": torch.ones(3, dtype=torch.bfloat16),
    "list": [1.5, float("inf"), None, "word", (1, "a", 0.1)], "nested": {"empty": {}, 3: [True]},
}  # fmt: skip


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of the run ``key``."""
    path = checkpoint_path(tmp_path, "key")
    write_checkpoint(path, "key", STATE)
    return path


def test_what_is_read_is_what_was_written(path: Path):
    assert equal(read_checkpoint(path, "key"), STATE)
    assert checkpoints_in(path.parent) == [path] and checkpoints_in(path.parent / "absent") == []
    assert [found.name for found in path.parent.iterdir()] == ["checkpoint-key.pt"]


def test_a_file_cut_short_anywhere_is_refused(path: Path):
    content = path.read_bytes()
    for length in [0, 1, 100, 511, 512, 513, *range(600, len(content), len(content) // 40), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(BenchmarkError, match=r"must be (a checkpoint|whole) \(got .*Delete the file"):
            read_checkpoint(path, "key")


def test_a_flipped_bit_anywhere_is_refused(path: Path):
    content = path.read_bytes()
    header = content[:512].rstrip()
    for place in [*range(len(header)), *range(512, len(content), len(content) // 200)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises(BenchmarkError, match="elete the file to run from the start"):
            read_checkpoint(path, "key")
    path.write_bytes(content)
    assert equal(read_checkpoint(path, "key"), STATE)


@pytest.mark.parametrize(
    ("name", "value"), [("SCHEMA", 99), ("__version__", "9.9")], ids=["schema", "version of the package"]
)
def test_another_version_is_refused(path: Path, monkeypatch, name, value):
    monkeypatch.setattr(checkpoints, name, value)
    with pytest.raises(BenchmarkError, match=rf"must be of (schema|rmm-gnn) {value} \(got .*Resume with what wrote it"):
        read_checkpoint(path, "key")


def test_another_version_of_torch_and_another_run_are_refused(path: Path, monkeypatch):
    with pytest.raises(BenchmarkError, match=r"must be of key other \(got key\)"):
        read_checkpoint(path, "other")
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    with pytest.raises(BenchmarkError, match=r"must be of torch 1.0.0 \(got 2"):
        read_checkpoint(path, "key")


def test_nothing_but_tensors_and_plain_values_is_read(path: Path, tmp_path: Path):
    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    write_checkpoint(path, "key", {"hostile": Runs()})
    with pytest.raises((BenchmarkError, pickle.UnpicklingError), match="must hold nothing but tensors"):
        read_checkpoint(path, "key")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_last_checkpoint(path: Path, monkeypatch):
    # The exception of the system, from the very call that writes; for a real limit see test_faults.py.
    def full(self: object, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real = checkpoints.whole_file

    class Full:
        def __init__(self, file):
            self._file, self._left = file, 2

        def write(self, data):
            self._left -= 1
            if self._left < 0:
                full(self, data)
            return self._file.write(data)

        def seek(self, place):
            return self._file.seek(place)

    from contextlib import contextmanager

    @contextmanager
    def limited(target):
        with real(target) as file:
            yield Full(file)

    monkeypatch.setattr(checkpoints, "whole_file", limited)
    with pytest.raises(BenchmarkError, match=r"could not be written \(No space left on device\)\. The last checkpoint"):
        write_checkpoint(path, "key", {"other": torch.zeros(5)})
    assert equal(read_checkpoint(path, "key"), STATE)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_ctrl_c_within_a_write_leaves_the_last_checkpoint(path: Path, monkeypatch):
    # Where torch calls from C++, in which an exception would be lost.
    monkeypatch.setattr(checkpoints.hashlib, "sha256", _Interrupting)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, "key", {"other": torch.zeros(5000)})
    monkeypatch.undo()
    assert equal(read_checkpoint(path, "key"), STATE)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


class _Interrupting:
    """A hash that Ctrl-C meets."""

    def __init__(self, *data: bytes) -> None:
        self._left = 3

    def update(self, data: object) -> None:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt

    def hexdigest(self) -> str:
        return "0" * 64


def test_ctrl_c_within_a_write_ends_the_command_as_ever(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = ["--smoke", "--method", "rmm", "--runs", "1", "--epochs", "5", "--checkpoint-every", "1"]
    writes = iter(range(100))
    write = checkpoints._header

    def interrupted(*given):
        if next(writes) == 2:
            raise KeyboardInterrupt
        return write(*given)

    monkeypatch.setattr(checkpoints, "_header", interrupted)
    assert main([*arguments, "--out", str(out)]) == 130
    assert f"continue with --resume --out {out}" in capsys.readouterr().err
    assert [found.name for found in out.iterdir()] == [path.name for path in checkpoints_in(out)] != []
    monkeypatch.undo()
    assert main([*arguments, "--out", str(out)]) == 2
    assert "already holds 1 unfinished runs. Add --resume" in capsys.readouterr().err
    assert main([*arguments, "--out", str(out), "--resume"]) == 0
    assert "goes on after epoch 2" in capsys.readouterr().err
    record = json.loads((out / "records.jsonl").read_text())
    assert record["results"]["resumptions"] == 1 and len(record["curves"]["loss"]) == 5
    assert checkpoints_in(out) == []
    assert "1 of 1 runs went on from a checkpoint" in (out / "table.md").read_text()


def test_a_damaged_checkpoint_stops_the_command_and_keeps_the_records(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "out"
    arguments = ["--smoke", "--method", "baseline", "--epochs", "3", "--checkpoint-every", "1", "--out", str(out)]
    monkeypatch.setattr("benchmarks.harness.run_checkpoints.RunCheckpoints.remove", lambda self: None)
    assert main(arguments) == 0
    lines = (out / "records.jsonl").read_text().splitlines(keepends=True)
    (out / "records.jsonl").write_text(lines[0])  # as if the second had been cut off
    damaged = checkpoint_path(out, json.loads(lines[1])["key"])
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert main([*arguments, "--resume"]) == 2
    found = capsys.readouterr().err
    assert f"error: '{damaged}' must be whole" in found and "Delete the file to run from the start" in found
    assert (out / "records.jsonl").read_text() == lines[0]
    damaged.unlink()
    assert main([*arguments, "--resume"]) == 0


def test_checkpoints_of_other_settings_are_told_and_kept(tmp_path: Path, capsys):
    write_checkpoint(checkpoint_path(tmp_path, "other"), "other", {})
    arguments = ["--smoke", "--method", "baseline", "--runs", "1", "--resume", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert f"1 checkpoint of other settings is kept in {tmp_path}: a command with" in capsys.readouterr().err
    write_checkpoint(checkpoint_path(tmp_path, "another"), "another", {})
    assert main(arguments) == 0
    assert (
        "2 checkpoints of other settings are kept in" in capsys.readouterr().err and len(checkpoints_in(tmp_path)) == 2
    )


def test_a_checkpoint_of_a_run_that_was_asked_for_is_none_of_other_settings(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.harness.sweep.train", interrupts)
    arguments = ["--smoke", "--method", "baseline", "--runs", "1", "--out", str(tmp_path)]
    assert main(arguments) == 130
    monkeypatch.undo()
    assert len(checkpoints_in(tmp_path)) == 1
    assert main([*arguments, "--resume"]) == 0 and "of other settings" not in capsys.readouterr().err


def interrupts(run, dataset, *, checkpoints, **others):
    """Leaves a first checkpoint."""
    checkpoints.write(Training(run, dataset).state_dict())
    raise KeyboardInterrupt
