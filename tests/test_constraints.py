"""The constraints files name what pyproject.toml allows: the lower bounds themselves, and releases within them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
# Built from source against one torch; for one loader each, whose tests are skipped without; judge code, and are pinned;
# bounded by transformers.
NOT_PINNED = {"torch-scatter", "torch-sparse", "pymetis", "ruff", "mypy", "tokenizers"}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    return [found for found in map(Requirement, texts) if found.name not in NOT_PINNED]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {one.name: Version(next(iter(one.specifier)).version) for one in found}


@pytest.mark.parametrize("name", ["oldest", "newest"])
def test_every_requirement_is_pinned_within_its_bounds(name):
    found = pins(name)
    outside = [str(one) for one in requirements() if one.name not in found or found[one.name] not in one.specifier]
    assert not outside


def test_the_oldest_are_the_lower_bounds():
    found = pins("oldest")
    for one in requirements():
        (bound,) = [Version(part.version).release for part in one.specifier if part.operator == ">="]
        assert found[one.name].release[: len(bound)] == bound, one


def test_the_torch_that_scripts_install_is_one_of_them():
    line = next(
        line for line in (ROOT / "scripts/_environment.sh").read_text().splitlines() if line.startswith("TORCH_VERSION")
    )
    assert Version(line.partition("=")[2]) == pins("newest")["torch"]


@pytest.mark.parametrize("arguments", [(), ("no/such/file",)])
def test_a_file_of_constraints_must_be_there(arguments):
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/test.sh"), "--constraints", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 1
    got = arguments[0] if arguments else ""
    assert f"'--constraints' must be followed by a file (got '{got}'). Try constraints/oldest.txt." in done.stderr


def test_what_is_held_in_an_installation(tmp_path):
    """The installed torch and the given releases, but not the given torch: a local build has another name."""
    pip = "python() { if [[ $2 == pip ]]; then echo pip \"${@:3}\"; else command python \"$@\"; fi; }"  # fmt: skip
    script = f"""
        source scripts/_environment.sh
        {pip}
        torch_version() {{ echo 2.13.0+cpu; }}
        package_state() {{ :; }}
        install_package dev "$1/stamp" "$1/held.txt" constraints/oldest.txt
    """
    done = subprocess.run(
        ["bash", "-euc", script, "-", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    held = (tmp_path / "held.txt").read_text().splitlines()
    assert "torch==2.13.0+cpu" in held and "torch==2.13.0" not in held and "torch-geometric==2.7.0" in held
    assert f"pip install --quiet --constraint {tmp_path}/held.txt --editable {ROOT}[dev]" in done.stdout
