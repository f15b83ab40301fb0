"""What the sdist and the wheels contain, and what they say of themselves."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import rmm_gnn

pytest.importorskip("hatchling")

ROOT = Path(__file__).resolve().parents[1]
NAME = f"rmm_gnn-{rmm_gnn.__version__}"
LIBRARY = "rmm_gnn/kernels/_native.so"
# In the checkout alone: it makes an environment, and then runs a script of the sdist.
NOT_IN_SDIST = {".ci/run"}


def build(target: str, source: Path, out: Path, **variables: str) -> Path:
    """Build with the backend as it is here, and return the one file that it made."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=source, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    """A wheel is built here: in a checkout that would replace the library that tests beside this one have loaded."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as file:
        file.extractall(folder, filter="data")
    return folder / NAME


@pytest.fixture(scope="module")
def pure_wheel(unpacked, tmp_path_factory):
    return build("wheel", unpacked, tmp_path_factory.mktemp("pure"), CC="false")


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def metadata_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as file:
        return file.read(f"{NAME}.dist-info/METADATA")


def wheel_says(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as file:
        return email.message_from_bytes(file.read(f"{NAME}.dist-info/WHEEL"))


def test_the_sdist_has_all_that_tests_need_and_nothing_that_was_made_on_the_way(unpacked):
    found = files_of(unpacked)
    for name in (
        "LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "hatch_build.py", "rmm_gnn/py.typed",
        "rmm_gnn/kernels/csrc/codes.c", "tests/conftest.py", "tests/public_api/signatures.txt",
        "benchmarks/ogbn_arxiv.py", "scripts/test.sh", "constraints/oldest.txt",
    ):  # fmt: skip
        assert name in found
    assert not [name for name in found if name.endswith((".so", ".pyc", ".pyd", ".log", ".jsonl", ".egg-info"))]
    assert not [name for name in found if {"__pycache__", "runs", "data", "dist", ".git"} & set(name.split("/")[:-1])]
    assert os.access(unpacked / "scripts/test.sh", os.X_OK)


def test_the_sdist_is_the_checkout(unpacked):
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    # Outside a checkout, as in an unpacked sdist, there is nothing to compare with but what lies there.
    if listed.returncode or not (ROOT / ".git").exists():
        expected = files_of(unpacked) & files_of(ROOT)
    else:
        expected = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()} - NOT_IN_SDIST
    assert files_of(unpacked) - {"PKG-INFO"} == expected - {"PKG-INFO"}


def test_a_wheel_made_without_a_compiler_is_pure(pure_wheel, unpacked):
    assert pure_wheel.name == f"{NAME}-py3-none-any.whl"
    assert wheel_says(pure_wheel)["Root-Is-Purelib"] == "true"
    information = {f"{NAME}.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "licenses/LICENSE")}
    package = {f"rmm_gnn/{name}" for name in files_of(unpacked / "rmm_gnn")}
    assert names_in(pure_wheel) == (package - {LIBRARY}) | information
    assert "rmm_gnn/py.typed" in package


def test_a_wheel_made_with_a_compiler_has_the_library_and_names_the_platform(pure_wheel, unpacked, tmp_path):
    compiler = tmp_path / "cc"  # quick: what real ones make of the sources is for other tests
    compiler.write_text('#!/bin/sh\nfor last; do :; done\nprintf "a library" > "$last"\n')
    compiler.chmod(0o755)
    wheel = build("wheel", unpacked, tmp_path / "wheel", CC=str(compiler))
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name == f"{NAME}-py3-none-{platform}.whl"
    assert wheel_says(wheel)["Root-Is-Purelib"] == "false"
    assert names_in(wheel) == names_in(pure_wheel) | {LIBRARY}
    with zipfile.ZipFile(wheel) as file:
        assert file.read(LIBRARY) == b"a library"


def test_the_metadata_are_valid_and_say_what_is_so(pure_wheel):
    found = Metadata.from_email(metadata_of(pure_wheel), validate=True)
    assert (found.name, str(found.version)) == ("rmm_gnn", rmm_gnn.__version__)
    assert found.license_expression == "MIT" and found.license_files == ["LICENSE"]
    assert str(found.requires_python) == ">=3.10"
    assert found.description_content_type == "text/markdown" and found.description == (ROOT / "README.md").read_text()
    assert {one.name for one in found.requires_dist or [] if one.marker is None} == {"torch", "torch-geometric"}
    extras = {"benchmarks", "transformers", "scatter", "sparse", "cluster", "triton", "docs", "dev"}
    assert set(found.provides_extra or []) == extras
    assert not found.project_urls and found.home_page is None  # there is no public place to name


def test_the_version_is_written_down_once():
    assert f'__version__ = "{rmm_gnn.__version__}"' in (ROOT / "rmm_gnn/__init__.py").read_text()
    text = (ROOT / "pyproject.toml").read_text()
    assert (
        'dynamic = ["version"]' in text and rmm_gnn.__version__ not in text.split("[project.optional-dependencies]")[0]
    )
