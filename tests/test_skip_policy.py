"""The option --fail-on-skip, run on a small project of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).with_name("conftest.py")


def run_pytest(folder: Path, source: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs one test file under this suite's conftest.py, with no settings of this project."""
    shutil.copy(CONFTEST, folder)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = cuda\n")
    (folder / "test_it.py").write_text("import pytest\n" + source)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "source",
    [
        "def test_called(): pytest.skip('because')",
        "@pytest.mark.skip(reason='because')\ndef test_marked(): pass",
        "pytest.skip('because', allow_module_level=True)",
    ],
    ids=["call", "mark", "module"],
)
def test_a_plain_skip_fails_the_run(tmp_path: Path, source: str):
    finished = run_pytest(tmp_path, source, "--fail-on-skip")
    assert finished.returncode == 1, finished.stdout
    assert "skipped without an allowed reason" in finished.stdout
    assert "test_it.py" in finished.stdout and "because" in finished.stdout


def test_a_plain_skip_passes_without_the_option(tmp_path: Path):
    assert run_pytest(tmp_path, "def test_it(): pytest.skip('because')").returncode == 0


def test_allowed_skips_and_expected_failures_pass(tmp_path: Path):
    source = """
def test_scatter(): pytest.skip("torch-scatter is not installed")
def test_cuda(): pytest.skip("needs CUDA")
def test_expected_failure(): pytest.xfail("known")
"""
    finished = run_pytest(tmp_path, source, "--fail-on-skip")
    assert finished.returncode == 0, finished.stdout
    assert "2 skipped" in finished.stdout and "1 xfailed" in finished.stdout


def test_a_failing_test_still_fails_the_run(tmp_path: Path):
    source = "def test_skip(): pytest.skip('because')\ndef test_fail(): assert False"
    assert run_pytest(tmp_path, source, "--fail-on-skip").returncode == 1


@pytest.mark.parametrize(
    ("available", "arguments", "summary"),
    [
        (False, [], "1 deselected"),
        (False, ["-m", ""], "1 skipped"),
        (True, [], "1 passed"),
        (True, ["-m", "not cuda"], "1 deselected"),
    ],
    ids=["cpu", "cpu-all", "gpu", "gpu-without"],
)
def test_cuda_tests_run_where_cuda_is(tmp_path: Path, available: bool, arguments: list[str], summary: str):
    (tmp_path / "torch.py").write_text(f"class cuda:\n    @staticmethod\n    def is_available(): return {available}\n")
    default = ["-o", "addopts=-m 'not cuda and not slow'"]
    source = "@pytest.mark.cuda\ndef test_on_gpu(): pass"
    finished = run_pytest(tmp_path, source, "--fail-on-skip", *default, *arguments)
    assert summary in finished.stdout, finished.stdout
