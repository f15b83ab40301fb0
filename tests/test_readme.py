"""The README's examples run as they stand, and the files it names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_blocks_run(number, tmp_path, monkeypatch):
    for name, uses in (("transformers", "from transformers"), ("matplotlib", ".plot(")):
        if uses in BLOCKS[number]:
            pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)  # some write files
    exec(compile(BLOCKS[number], f"README.md, block {number}", "exec"), {})


def test_there_are_examples():
    assert len(BLOCKS) >= 2


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"^[A-Z]+_[A-Z_]+$", README, flags=re.MULTILINE)


def test_named_files_exist():
    named = re.findall(r"(?:bash|python) ((?:scripts|benchmarks)/[\w/]+\.(?:sh|py))", README)
    named += re.findall(r"\]\(((?!https?:|#)[^)]+)\)", README)
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_family_has_a_row():
    from rmm_gnn.sketches import FAMILIES

    for name, family in FAMILIES.items():
        assert f'"{name}"' in README or family.__name__ in README
