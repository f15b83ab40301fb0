"""The option --fail-on-skip, run on a small project of its own."""

from __future__ import annotations

import os
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
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist", *arguments]
    environment = os.environ | {
        "PYTEST_ADDOPTS": "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # other plugins take as long as all else
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture(params=[(), ("-n", "2")], ids=["alone", "workers"])
def workers(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """Flags that run the tests in one process, and in two of pytest-xdist's."""
    return request.param


@pytest.mark.parametrize(
    "source",
    [
        "def test_called(): pytest.skip('because')",
        "@pytest.mark.skip(reason='because')\ndef test_marked(): pass",
        "pytest.skip('because', allow_module_level=True)",
    ],
    ids=["call", "mark", "module"],
)
def test_a_plain_skip_fails_the_run(tmp_path: Path, source: str, workers: tuple[str, ...]):
    finished = run_pytest(tmp_path, source, "--fail-on-skip", *workers)
    assert finished.returncode == 1, finished.stdout
    _, named = finished.stdout.split("skipped without an allowed reason")
    assert named.count("test_it.py") == 1 and "because" in named


def test_a_module_skipped_beside_tests_that_pass_fails_the_run(tmp_path: Path, workers: tuple[str, ...]):
    (tmp_path / "test_other.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    source = "pytest.skip('because', allow_module_level=True)"
    finished = run_pytest(tmp_path, source, "--fail-on-skip", *workers)
    assert finished.returncode == 1 and "2 passed" in finished.stdout, finished.stdout


def test_a_plain_skip_passes_without_the_option(tmp_path: Path):
    assert run_pytest(tmp_path, "def test_it(): pytest.skip('because')").returncode == 0


def test_allowed_skips_and_expected_failures_pass(tmp_path: Path, workers: tuple[str, ...]):
    source = """
def test_scatter(): pytest.skip("torch-scatter is not installed")
def test_cuda(): pytest.skip("needs CUDA")
def test_expected_failure(): pytest.xfail("known")
"""
    finished = run_pytest(tmp_path, source, "--fail-on-skip", *workers)
    assert finished.returncode == 0, finished.stdout
    assert "2 skipped" in finished.stdout and "1 xfailed" in finished.stdout


def test_an_allowed_skip_of_a_module_passes(tmp_path: Path, workers: tuple[str, ...]):
    source = "pytest.skip('there is no C compiler', allow_module_level=True)"
    (tmp_path / "test_other.py").write_text("def test_one(): pass\n")
    assert run_pytest(tmp_path, source, "--fail-on-skip", *workers).returncode == 0


def test_a_failing_test_still_fails_the_run(tmp_path: Path, workers: tuple[str, ...]):
    source = "def test_skip(): pytest.skip('because')\ndef test_fail(): assert False"
    assert run_pytest(tmp_path, source, "--fail-on-skip", *workers).returncode == 1


def test_a_worker_that_crashes_fails_the_run(tmp_path: Path):
    source = "import os\ndef test_dies(): os._exit(3)\ndef test_lives(): pass"
    finished = run_pytest(tmp_path, source, "--fail-on-skip", "-n", "2")
    assert finished.returncode == 1 and "crashed" in finished.stdout, finished.stdout


@pytest.mark.parametrize(
    ("available", "arguments", "summary"),
    [
        (False, [], "1 deselected"),
        (False, ["-m", ""], "1 skipped"),
        (True, [], "1 passed"),
        (True, ["-m", "not cuda"], "1 deselected"),
        (True, ["-n", "2"], "1 passed"),
        (True, ["-n", "2", "-m", "not cuda"], "0 items"),  # the main process does not hear of what is deselected
    ],
    ids=["cpu", "cpu-all", "gpu", "gpu-without", "gpu-workers", "gpu-workers-without"],
)
def test_cuda_tests_run_where_cuda_is(tmp_path: Path, available: bool, arguments: list[str], summary: str):
    (tmp_path / "torch.py").write_text(f"class cuda:\n    @staticmethod\n    def is_available(): return {available}\n")
    default = ["-o", "addopts=-m 'not cuda and not slow'"]
    source = "@pytest.mark.cuda\ndef test_on_gpu(): pass"
    finished = run_pytest(tmp_path, source, "--fail-on-skip", *default, *arguments)
    assert summary in finished.stdout, finished.stdout
