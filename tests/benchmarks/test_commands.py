"""No command without a test that runs it: every script and every benchmark is found here, or says why it is not."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Scripts that scripts/smoke.sh does not run, and why.
NO_SMOKE = {
    "_environment": "is sourced by the others",
    "check": "runs in seconds as it is, at the beginning of scripts/test.sh",
    "check_package": "makes environments and downloads what they need; for before a release",
    "docs": "its build is a test, tests/docs/test_build.py",
    "install_scatter": "compiles for a quarter of an hour",
    "install_sparse": "compiles for half an hour",
    "smoke": "runs the others",
    "test": "runs scripts/smoke.sh",
}


def smoked() -> list[str]:
    listed = subprocess.run(
        ["bash", str(ROOT / "scripts/smoke.sh"), "--list"], capture_output=True, text=True, check=True
    )
    return listed.stdout.split()


def test_every_script_runs_with_smoke_or_says_why_not():
    there = {path.stem for path in (ROOT / "scripts").glob("*.sh")}
    assert sorted([*smoked(), *NO_SMOKE]) == sorted(there)


def test_what_has_a_smoke_takes_the_flag():
    for name in smoked():
        text = (ROOT / "scripts" / f"{name}.sh").read_text()
        assert '"$@"' in text, name
        module = re.search(r"python -m ([\w.]+)|(benchmarks/\w+\.py)", text)
        assert module, name


def test_scripts_pass_the_shells_check():
    for path in (ROOT / "scripts").glob("*.sh"):
        subprocess.run(["bash", "-n", str(path)], check=True)


def test_all_are_run_with_the_tests():
    assert "bash scripts/smoke.sh" in (ROOT / "scripts/test.sh").read_text()


def test_an_unknown_name_is_refused():
    done = subprocess.run(["bash", str(ROOT / "scripts/smoke.sh"), "nothing"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "'nothing' must be a script of the folder scripts. See bash scripts/smoke.sh --list." in done.stderr


COMMANDS = [
    path
    for folder in ("benchmarks", "benchmarks/micro")
    for path in sorted((ROOT / folder).glob("*.py"))
    if 'if __name__ == "__main__":' in path.read_text()
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_benchmark_is_run_to_its_end_by_a_test(path):
    """In the default suite, at tiny size: its ``main`` has to give 0."""
    module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    package, _, stem = module.rpartition(".")
    imports = (f"from {package} import {stem}", f"from {module} import", f"import {module}", f"{package} import ")
    ending = re.compile(rf"\b(?:{stem}\.)?main\(.*\) == 0")
    running = [
        test
        for test in (ROOT / "tests").rglob("test_*.py")
        if (text := test.read_text())
        and stem in text
        and any(one in text for one in imports)
        and (ending.search(text) or f"{stem}.sh" in text)
    ]
    assert running, f"no test runs {path.relative_to(ROOT)}"


def test_commands_are_found():
    assert {"ogbn_arxiv", "glue", "gpu_check", "linear", "noise", "compute"} <= {path.stem for path in COMMANDS}


INDEX = (ROOT / "benchmarks/README.md").read_text()


def test_the_index_names_every_report_and_nothing_that_is_not_there():
    for path in (ROOT / "scripts").glob("reproduce_*.sh"):
        assert f"`bash scripts/{path.name}" in INDEX, path.name
    named = re.findall(r"(?:bash|python|pytest) ((?:scripts|benchmarks|tests)/[\w/]+\.(?:sh|py))", INDEX)
    named += [f"benchmarks/{link}" for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", INDEX)]
    named += re.findall(r"`(docs/\w+\.png)`", INDEX)
    assert len(named) > 30
    assert not [name for name in named if not (ROOT / name).exists()]
