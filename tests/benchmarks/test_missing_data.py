"""Without data: exit code 2, a message that helps, and nothing left behind, every time."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from benchmarks.harness.datasets.staging import download_into
from benchmarks.harness.errors import BenchmarkError
from benchmarks.ogbn_arxiv import main


@pytest.mark.parametrize(
    ("arguments", "place"), [([], "ogbn_arxiv"), (["--dataset", "planetoid:cora"], "Cora")], ids=["ogb", "planetoid"]
)
def test_missing_data_twice(tmp_path: Path, capsys, monkeypatch, arguments: list[str], place: str):
    monkeypatch.chdir(tmp_path)
    messages = []
    for _ in range(2):
        assert main([*arguments, "--method", "baseline", "--root", "absent/root"]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        messages.append(captured.err)
        assert list(tmp_path.iterdir()) == []
    assert messages[0] == messages[1]
    assert "Traceback" not in messages[0]
    assert str(tmp_path / "absent" / "root" / place) in messages[0]
    assert "--download" in messages[0] and "--root" in messages[0]
    assert "python benchmarks/ogbn_arxiv.py --dataset digits --rate 0.1" in messages[0]


def test_an_incomplete_folder_names_what_it_lacks_and_stays_as_it_is(ogb_root: Path, capsys):
    lacking = ogb_root / "ogbn_arxiv" / "split" / "time" / "valid.csv.gz"
    lacking.unlink()
    before = sorted(ogb_root.rglob("*"))
    for _ in range(2):
        assert main(["--root", str(ogb_root), "--method", "baseline"]) == 2
        assert "lacks split/time/valid.csv.gz." in capsys.readouterr().err
        assert sorted(ogb_root.rglob("*")) == before


def test_a_failed_download_leaves_nothing_and_is_explained(tmp_path: Path, capsys, monkeypatch):
    def no_route(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(socket, "getaddrinfo", no_route)
    timeout = socket.getdefaulttimeout()
    for _ in range(2):
        arguments = ["--root", str(tmp_path / "new" / "root"), "--method", "baseline", "--download"]
        assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
        message = capsys.readouterr().err
        assert "download of 'ogbn_arxiv' failed" in message and "no route to host" in message
        assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() == timeout


def test_a_download_arrives_whole(tmp_path: Path):
    def fetch(folder: Path) -> None:
        (folder / "Thing").mkdir()
        (folder / "Thing" / "file").write_text("x")

    download_into(tmp_path / "a" / "Thing", fetch)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["Thing"]
    assert (tmp_path / "a" / "Thing" / "file").read_text() == "x"
    with pytest.raises(BenchmarkError, match="there but not complete"):
        download_into(tmp_path / "a" / "Thing", fetch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "karate"], "'dataset' must be one of"),
        (["--dataset", "planetoid:karate"], "'dataset' must be planetoid: and one of"),
        (["--dataset", "npz:absent.npz"], "is not a file"),
        (["--epochs", "0"], "'epochs' must be at least 1"),
        (["--dropout", "1"], r"'dropout' must be in \[0, 1\)"),
        (["--resume"], "'resume' must come with --out"),
        (["--device", "toaster"], "'device' must be auto"),
        (["--device", "cuda:99"], "'device' must exist"),
        (["--rate", "0.1", "0.1"], "'rate' must name different values"),
        (["--codec", "int8", "int8"], "'codec' must name different values"),
        (["--method", "rmm", "--codec", "int3"], "'codec' must be .*int8"),
        (["--method", "rmm-lean", "--norm-codec", "none"], "'norm_codec' must be .*int2"),
        (["--method", "rmm-lean", "--norm-rate", "0"], r"'norm_rate' must lie in \(0, 1\]"),
        (["--method", "rmm-lean", "--x0-codec", "int4:rows=3"], "'x0_codec' must have settings"),
        (["--method", "exact", "--rate", "0"], r"'rate' must be in \(0, 1\]"),
    ],
)
def test_a_bad_argument_is_refused_before_anything_is_written(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main([*([] if "--method" in arguments else ["--method", "baseline"]), *arguments]) == 2
    assert list(tmp_path.iterdir()) == []
    captured = capsys.readouterr()
    assert re.search(message, captured.err), captured.err


def test_an_unknown_sketch_is_refused_with_the_known_ones(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--dataset", "digits", "--sketch", "magic"]) == 2
    assert "count_sketch" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
