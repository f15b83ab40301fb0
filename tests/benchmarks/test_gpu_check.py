"""The one command for a machine with a GPU: what it refuses, what it would run there, and a run of it on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import LIMIT_S, ROOT, SMOKE_TITLE, main, parts_of
from benchmarks.harness.methods import METHODS

SCRIPT = ROOT / "scripts" / "gpu_check.sh"


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The script, in the environment of the tests, where it sees no GPU."""
    folder = str(Path(sys.executable).parent)
    variables = os.environ | {
        "VIRTUAL_ENV": sys.prefix, "PATH": f"{folder}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=500)


def test_without_a_gpu_the_script_refuses_at_once(tmp_path):
    done = call(str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: a CUDA device must be there (torch ") and "--smoke" in done.stderr
    assert not (tmp_path / "out").exists() and not done.stdout


def test_missing_packages_are_named(monkeypatch, capsys):
    find = gpu_check.importlib.util.find_spec
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None if name == "ogb" else find(name))
    assert main(["--smoke"]) == 2
    error = capsys.readouterr().err
    assert "error: the packages of the checks must be installed (missing: ogb)" in error and "Traceback" not in error


def test_what_can_be_put_right(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (["--epochs", "0"], "'epochs' must be at least 1 (got 0)"),
        ([str(tmp_path)], "'out' must be a new folder"),
        (
            [str(tmp_path / "new"), "--part", "linear"],
            "'part' must be one of cuda-tests, graph-tests, kernel-tests, linear-torch",
        ),
    ):
        assert main([*arguments, "--smoke"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_parts_on_a_gpu(tmp_path):
    """Each has a time of its own, and all end within nine minutes."""
    (tmp_path / "ogbn_arxiv").mkdir()
    parts, notes = parts_of(tmp_path / "out", tmp_path, 5, smoke=False)
    assert sum(part.budget_s for part in parts) <= LIMIT_S < 540
    assert [part.name for part in parts] == [
        "cuda-tests", "graph-tests", "kernel-tests", "linear-torch", "linear-triton", "kernels-torch", "kernels-triton",
        "arxiv-4x64", "arxiv-16x256",
    ]  # fmt: skip
    commands = {part.name: list(part.command) for part in parts}
    assert commands["cuda-tests"][-1] == commands["graph-tests"][-1] == gpu_check.GRAPH_TESTS
    assert (ROOT / gpu_check.GRAPH_TESTS).exists() and commands["cuda-tests"][-2] == "--ignore"
    assert "tests/kernels/test_ahead_of_time.py" in commands["kernel-tests"]
    for name, command in commands.items():
        if not name.endswith("tests"):
            assert command[command.index("--device") + 1] == "cuda"
            assert (ROOT / command[1]).exists()
    for part in parts:
        timed = part.name.startswith(("linear", "kernels"))
        assert list(part.needs) == (["kernel-tests"] if timed else [])
        assert ("--tested-in" in part.command) == timed and "--no-gate" not in part.command
    arxiv = commands["arxiv-16x256"]
    assert ["--root", str(tmp_path)] == arxiv[2:4] and "--ledger" in arxiv and "digits" not in arxiv
    methods = {text.partition(":")[0] for text in gpu_check.METHODS}
    assert methods == set(METHODS)
    assert not any("digits" in note for note in notes)


def test_without_the_data_the_digits_stand_in_and_a_note_says_so(tmp_path):
    parts, notes = parts_of(tmp_path / "out", tmp_path, 5, smoke=False)
    assert "digits" in parts[-1].command
    assert any(note.startswith(f"No ogbn_arxiv in '{tmp_path}'") for note in notes)


def smoke(tmp_path, *arguments: str) -> str:
    """The summary of a run on the CPU, which must not look like one of a GPU."""
    out = tmp_path / "out"
    done = call(str(out), "--smoke", *arguments, cwd=tmp_path)
    text = (out / "summary.md").read_text()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert text.startswith(f"# {SMOKE_TITLE}\n") and text in done.stdout and "GPU check" not in text
    assert json.loads((out / "environment.json").read_text())["device"] in text
    return text


def test_a_part_from_the_shell(tmp_path):
    # From elsewhere, so that the script must find the repository itself.
    text = smoke(tmp_path, "--part", "kernels-torch")
    assert "1 of 1 parts passed." in text
    assert "`kernels-torch.txt`" in text and "`kernels-torch.json`" in text
    assert json.loads((tmp_path / "out" / "kernels-torch.json").read_text())["rows"]


@pytest.mark.slow
def test_all_parts_on_the_cpu(tmp_path):
    text = smoke(tmp_path, "--epochs", "2")
    assert "6 of 6 parts passed." in text
    assert "`arxiv-2x16/`" in text
    names = {path.name for path in (tmp_path / "out" / "arxiv-2x16").iterdir()}
    assert {"table.md", "records.jsonl", "accuracy.png"} <= names and any(name.startswith("ledger-") for name in names)
