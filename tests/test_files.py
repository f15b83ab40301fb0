"""Files appear whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
import torch

from rmm_gnn import GradientProbe, RMMConfig, memory_report
from rmm_gnn._files import LEFTOVER_SUFFIX, save_figure, whole_file, write_whole


def test_a_file_that_is_not_finished_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("before")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), whole_file(path, "w") as file:
            file.write("half")
            file.flush()
            assert path.read_text() == "before"
            raise error
        assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    write_whole(path, "after, \u00fc")
    assert path.read_bytes() == "after, \u00fc".encode() and list(tmp_path.iterdir()) == [path]


def test_a_reader_meets_one_whole_text_or_the_other(tmp_path: Path):
    path, texts, found = tmp_path / "file", ["a" * 100_000, "b" * 100_000], set()
    write_whole(path, texts[0])
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(50):
        write_whole(path, texts[number % 2])
    done.set()
    reader.join()
    assert found and found <= set(texts)


def test_permissions_and_links_stay(tmp_path: Path):
    target, link = tmp_path / "target", tmp_path / "link"
    write_whole(target, "x")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask
    target.chmod(0o640)
    link.symlink_to(target)
    write_whole(link, "y")
    assert link.is_symlink() and target.read_text() == "y" and stat.S_IMODE(target.stat().st_mode) == 0o640


def test_what_is_no_regular_file_is_written_in_place(tmp_path: Path):
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "through")
    reader.join()
    assert found == ["through"] and stat.S_ISFIFO(pipe.stat().st_mode)
    with pytest.raises(OSError, match="No space left on device"):
        write_whole("/dev/full", "x")
    assert not Path("/dev/full").is_file()


def test_an_ending_chooses_the_format_of_a_figure_and_none_is_matplotlib_s(tmp_path: Path):
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = plt.figure()
    save_figure(figure, tmp_path / "one.svg")
    save_figure(figure, tmp_path / "two")
    plt.close(figure)
    assert b"<svg" in (tmp_path / "one.svg").read_bytes()
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.svg", "two.png"]


def test_the_package_s_writers_leave_no_half_file(tmp_path: Path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    model, x = torch.nn.Linear(8, 2), torch.randn(20, 8)
    with GradientProbe(model, RMMConfig(rate=0.5), every=1) as probe:
        model(x).square().mean().backward()
    report = memory_report(model, x, loss_fn=lambda out: out.square().mean())
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    writers = {"records.jsonl": probe.to_jsonl, "noise.png": probe.plot, "memory.png": report.plot}
    for name, write in writers.items():
        (tmp_path / name).write_text("before")
        write(tmp_path / name)
        assert (tmp_path / name).read_bytes() != b"before" and synced
        synced.clear()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name, write in writers.items():
        before = (tmp_path / name).read_bytes()
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    assert not list(tmp_path.glob(f".*{LEFTOVER_SUFFIX}"))
