"""Places that cannot be written, files that are torn, two commands at once: a line that says so, and nothing lost."""

from __future__ import annotations

import json
import os
import re
import resource
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks.harness.checkpoints import checkpoint_path, read_checkpoint, write_checkpoint
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.files import write_figure, write_text
from benchmarks.harness.jsonl import FILE, append_record, read_lines
from benchmarks.harness.out_folder import out_folder
from benchmarks.harness.script import guarded
from benchmarks.ogbn_arxiv import main
from tests.benchmarks.conftest import NO_RUN

SMOKE = ["--smoke", "--method", "baseline", "--runs", "1"]
NOBODY = 65534


@contextmanager
def files_up_to(num_bytes: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: the kernel refuses the rest, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def as_nobody(function: Callable[[], object]) -> str:
    """What a process without privileges raises: permissions do not bind the administrator."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        said = "nothing"
        try:
            if os.geteuid() == 0:
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            function()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as file:
        return file.read()


def test_records_that_no_longer_fit_leave_those_before_readable(tmp_path: Path):
    records = [NO_RUN | {"key": key, "curve": [0] * 100} for key in "abc"]
    said = rf"'{tmp_path / FILE}' could not be written \(File too large\)\. Finished runs in it are kept"
    with files_up_to(1000), pytest.raises(BenchmarkError, match=said):  # within the third one
        for record in records:
            append_record(tmp_path, record)
    assert (tmp_path / FILE).read_bytes().endswith(b"\n")
    assert read_lines(tmp_path, 3) == records[:2]
    append_record(tmp_path, records[2])
    assert read_lines(tmp_path, 3) == records


def test_a_checkpoint_that_does_not_fit_keeps_the_last(tmp_path: Path):
    path = checkpoint_path(tmp_path, "key")
    write_checkpoint(path, "key", {"values": torch.ones(10)})
    said = rf"'{path}' could not be written \(File too large\)\. The last checkpoint"
    with files_up_to(10**6), pytest.raises(BenchmarkError, match=said):
        write_checkpoint(path, "key", {"values": torch.ones(10**6)})
    assert read_checkpoint(path, "key")["values"].tolist() == [1.0] * 10
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_fills_up_before_a_checkpoint_ends_the_command_with_code_2(tmp_path: Path, capsys):
    out = tmp_path / "out"
    arguments = ["--smoke", "--method", "rmm-lean", "--runs", "1", "--checkpoint-every", "1", "--out", str(out)]
    with files_up_to(10_000):  # a checkpoint of this model takes more
        assert main(arguments) == 2
    assert "could not be written (File too large)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_before_a_record_keeps_the_runs_that_are_recorded(tmp_path: Path, capsys):
    out = tmp_path / "out"
    arguments = ["--smoke", "--method", "baseline", "--runs", "2", "--checkpoint-every", "0", "--out", str(out)]
    assert main([*arguments, "--runs", "1"]) == 0
    first = (out / FILE).read_bytes()
    with files_up_to(len(first) + 100):
        assert main([*arguments, "--resume"]) == 2
    assert f"'{out / FILE}' could not be written (File too large). Finished runs" in capsys.readouterr().err
    assert (out / FILE).read_bytes() == first


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file", "'out' must be a folder \\(got the file"),
        ("file/below", "could not be written \\(Not a directory\\)\\. No run was started"),
        ("/proc/no/such", "could not be written \\(No such file or directory\\)\\. No run was started"),
        ("/dev/full", "'out' must be a folder \\(got the file"),
    ],
)
def test_a_place_that_is_no_folder_is_told_before_the_first_run(tmp_path: Path, capsys, monkeypatch, place, message):
    (tmp_path / "file").write_text("something")
    monkeypatch.setattr("benchmarks.harness.sweep.train", lambda *a, **k: pytest.fail("a run was started"))
    assert main([*SMOKE, "--out", str(tmp_path / place)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert (tmp_path / "file").read_text() == "something" and len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def open_path(tmp_path: Path) -> Path:
    """A folder that everybody can reach."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return tmp_path


def enter(folder: Path) -> None:
    with out_folder(folder):
        pass


def test_a_folder_without_permission_is_told(open_path: Path):
    folder = open_path / "closed"
    folder.mkdir(mode=0o755)
    folder.chmod(0o555)
    said = as_nobody(lambda: enter(folder))
    assert said.startswith(f"BenchmarkError: '{folder}' could not be written (Permission denied). No run was started")
    said = as_nobody(lambda: write_text(folder / "table.md", "x"))
    assert "table.md' could not be written (Permission denied). Records that were written are kept" in said


def test_a_record_file_that_is_read_only_is_told_before_the_first_run(open_path: Path):
    folder = open_path / "shared"
    folder.mkdir()
    append_record(folder, NO_RUN | {"key": "x"})
    (folder / FILE).chmod(0o444)
    folder.chmod(0o777)
    said = as_nobody(lambda: enter(folder))
    assert said.startswith(f"BenchmarkError: '{folder / FILE}' could not be written (Permission denied). No run was")
    assert [record["key"] for record in read_lines(folder, 3)] == ["x"]


def test_two_commands_in_one_folder(tmp_path: Path, capsys, monkeypatch):
    out = tmp_path / "out"
    # A lock is of an open file, so that a process can stand in its own way.
    with out_folder(out):
        assert main([*SMOKE, "--out", str(out)]) == 2
        assert f"'out' must not be in use by another command (got '{out}')" in capsys.readouterr().err
    assert not out.exists()  # made here, and nothing was written


def test_a_sweep_that_was_killed_leaves_no_lock_and_its_leftovers_go(tmp_path: Path):
    leftover = tmp_path / ".table.md.0123abcd.partial"
    leftover.write_text("half a tab")
    (tmp_path / "mine.partial").write_text("no leftover of ours")
    with out_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == ["mine.partial"]
    with out_folder(tmp_path):
        pass


def test_lines_of_many_writers_stay_whole(tmp_path: Path):
    # Each call opens the file anew, as a process of its own does; the lines are longer than one write of a pipe.
    records = [NO_RUN | {"key": str(number), "curve": [number] * 20_000} for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda record: append_record(tmp_path, record), records))
    found = read_lines(tmp_path, 3)
    assert sorted((record["key"] for record in found), key=int) == [record["key"] for record in records]
    assert all(set(record["curve"]) == {int(record["key"])} for record in found)


@pytest.mark.parametrize("damage", ["cut", "zeros", "foreign"])
def test_records_that_cannot_be_read_stop_the_command_and_stay(tmp_path: Path, capsys, damage: str):
    append_record(tmp_path, NO_RUN | {"key": "x"})
    append_record(tmp_path, NO_RUN | {"schema": 3 if damage != "foreign" else 2, "key": "y"})
    path = tmp_path / FILE
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[5:])
    if damage == "zeros":
        path.write_bytes(bytes(10) + content[10:])
    before = path.read_bytes()
    assert main([*SMOKE, "--out", str(tmp_path), "--resume"]) == 2
    said = capsys.readouterr().err
    assert ("must have schema 3 (got 2 at line 2)" if damage == "foreign" else "is damaged at line 1") in said
    assert path.read_bytes() == before


def test_a_full_device_is_told_for_tables_and_pictures(tmp_path: Path):
    plt = pytest.importorskip("matplotlib.pyplot")
    picture = tmp_path / "picture.png"
    picture.symlink_to("/dev/full")
    for path, write in (
        (Path("/dev/full"), lambda path: write_text(path, "table")),
        (picture, lambda path: write_figure(plt.figure(), path)),
    ):
        with pytest.raises(BenchmarkError, match=rf"'{path}' could not be written \(No space left on device\)"):
            write(path)
    plt.close("all")


def test_the_system_s_refusals_anywhere_else_end_with_a_line(capsys):
    def write() -> int:
        with open("/dev/full", "w") as file:
            file.write("x")
        return 0

    assert guarded(write, "") == 2
    assert capsys.readouterr().err.startswith("error: [Errno 28] No space left on device")

    def broken() -> int:
        raise FileNotFoundError(2, "No such file or directory", "ours")

    with pytest.raises(FileNotFoundError):  # not the user's: a traceback helps
        guarded(broken, "")


def test_a_record_of_a_command_is_refused_where_a_file_is_in_the_way(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchmarkError, match="could not be written"):
        write_text(tmp_path / "file" / "table.md", json.dumps({}))
