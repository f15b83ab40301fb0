"""The code on every page of the documentation runs, and so do its examples."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.docs.pages import EXAMPLES, PAGES, ROOT, named_files, python_blocks, quoted_blocks, run

PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
WITH_CODE = [page for page in PAGES if python_blocks(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """In the order of the page and with one another's names, as a reader types them."""
    monkeypatch.chdir(tmp_path)  # some write files
    namespace = {"__name__": "__main__"}
    for number, block in enumerate(python_blocks(page)):
        run(block, namespace, f"{page.name}, block {number}")


@PAGE
def test_quoted_python_is_python(page):
    for block in quoted_blocks(page):
        compile(block.replace("...", "pass"), page.name, "exec")


@PAGE
def test_named_files_exist(page):
    missing = [name for name in named_files(page) if not (ROOT / name).exists()]
    assert not missing


def command_of(example):
    """The line ``Run: ...`` of an example's docstring, for this Python; without one, the file alone."""
    name = f"docs/examples/{example.name}"
    stated = re.search(r"^Run: (.+)$", example.read_text(), flags=re.MULTILINE)
    words = shlex.split(stated[1] if stated else f"python {name}")
    assert name in words, f"the command must name the file as {name}"
    start = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}[words[0]]
    return start + [str(example) if word == name else word for word in words[1:]]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_examples_run(example, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command_of(example), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout, "an example should show something"


def test_there_is_something_to_run():
    assert WITH_CODE and EXAMPLES
