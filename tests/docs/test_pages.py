"""The code on every page of the documentation runs, and so do its examples."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.docs.pages import EXAMPLES, PAGES, ROOT, named_files, outputs, python_blocks, quoted_blocks, run, same
from tests.docs.test_example_scripts import RUN_HERE

PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
WITH_CODE = [page for page in PAGES if python_blocks(page)]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    """In the order of the page and with one another's names, as a reader types them; with the output on the page."""
    monkeypatch.chdir(tmp_path)  # some write files
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    namespace = {"__name__": "__main__"}
    for number, (block, shown) in enumerate(zip(python_blocks(page), outputs(page), strict=True)):
        run(block, namespace, f"{page.name}, block {number}")
        printed = capsys.readouterr().out
        assert shown is None or same(shown, printed), f"block {number} printed:\n{printed}\non the page is:\n{shown}"


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


# The others run where what they print is looked at.
@pytest.mark.parametrize(
    "example", [path for path in EXAMPLES if path.name not in RUN_HERE], ids=lambda example: example.name
)
def test_examples_run(example, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command_of(example), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout, "an example should show something"


def test_there_is_something_to_run():
    assert WITH_CODE and EXAMPLES


@pytest.mark.parametrize(
    ("shown", "printed", "agree"),
    [
        ("loss  0.50\n----\n3 MiB\n", "loss 0.55\n------\n3 MiB", True),
        ("loss 0.50", "loss 0.90", False),
        ("35.8x less", "35.7x less", False),
        ("relu 70.2 KiB 24.3", "relu 70.2 KiB 24.4", False),
        ("317300 bytes, test accuracy 96.5 %", "317301 bytes, test accuracy 96.5 %", False),
        ("exact 98.4 %, lean 94.5 %, 12.1 s", "exact 98.0 %, lean 96.0 %, 11.0 s", True),
        ("noise over the data's 0.44", "noise over the data's 0.50", True),
        ("relu 3 MiB", "dropout 3 MiB", False),
        ("one 1\ntwo 2", "one 1", False),
        ("", "one", False),
    ],
)
def test_outputs_agree_but_for_spaces_and_noise(shown, printed, agree):
    assert same(shown, printed) is agree


def test_outputs_stand_after_their_block(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\na\n```\n\n```text\nout\n```\n\n```python\nb\n```\n\nwords\n\n```text\nnot its own\n```\n"
    )
    assert python_blocks(page) == ["a\n", "b\n"] and outputs(page) == ["out\n", None]
