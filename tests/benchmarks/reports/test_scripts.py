"""The shell scripts: one for every report, run from an environment where nothing can be installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[3]
NAMES = (
    "table2",
    "table4",
    "table5",
    "table3_memory",
    "table3_matmuls",
    "fig2",
    "fig3_fig5",
    "fig4_fig6",
    "fig7",
    "fig8",
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment with the packages of this one, without pip, stamped as scripts/test.sh would stamp it."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False, symlinks=True)
    purelib = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    paths = [path for path in sys.path if path.endswith("-packages")]
    Path(purelib, "outer.pth").write_text("".join(f"{path}\n" for path in paths))
    variables = os.environ | {
        "VIRTUAL_ENV": str(folder), "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1", "PYTHONPATH": "",
    }  # fmt: skip
    stamp = 'source scripts/_environment.sh; package_state dev,transformers,benchmarks >"$VIRTUAL_ENV/$1"'
    subprocess.run(
        ["bash", "-c", stamp, "-", "rmm_gnn-dev-transformers-benchmarks.stamp"], cwd=ROOT, env=variables, check=True
    )
    return variables


def test_a_report_from_the_shell(environment, tmp_path):
    # From elsewhere, so that the script must find the repository itself.
    flags = ["--smoke", "--task", "mrpc", "--rate", "0.5", "--out", str(tmp_path / "out")]
    command = ["bash", str(ROOT / "scripts/reproduce_table3_memory.sh"), *flags]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "rmm_gnn[dev,transformers,benchmarks] is installed" in done.stdout
    text = (tmp_path / "out" / "table3_memory.md").read_text()
    assert text in done.stdout and "- Not run: QNLI, SST-2." in text
    assert (tmp_path / "out" / "table3_memory.png").exists()


def test_arguments_and_exit_codes_are_passed_on(environment):
    command = ["bash", str(ROOT / "scripts/reproduce_fig8.sh"), "--report-only", "--runs", "3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert "error: 'report-only' must come alone (got --runs 3 besides)" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_report_has_a_script_of_its_own(name):
    script = ROOT / "scripts" / f"reproduce_{name}.sh"
    assert os.access(script, os.X_OK)
    assert f'python -m benchmarks.reports.{name} "$@"' in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_a_stamp_without_an_extra_is_not_enough(environment):
    check = 'source scripts/_environment.sh; is_installed "$1" "$VIRTUAL_ENV"'
    codes = [
        subprocess.run(["bash", "-c", check, "-", extras], cwd=ROOT, env=environment, capture_output=True).returncode
        for extras in ("benchmarks", "transformers,benchmarks", "benchmarks,triton")
    ]
    assert codes == [0, 0, 1]
