"""The README's examples run as they stand, and the files it names exist."""

import re

import pytest

from tests.docs.pages import README, ROOT, named_files, python_blocks, run

BLOCKS = python_blocks(README)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_blocks_run(number, tmp_path, monkeypatch):
    """Each by itself: a reader of the README copies one of them."""
    for name, uses in (("transformers", "from transformers"), ("matplotlib", ".plot(")):
        if uses in BLOCKS[number]:
            pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)  # some write files
    run(BLOCKS[number], {}, f"README.md, block {number}")


def test_there_are_examples():
    assert len(BLOCKS) >= 2


def test_nothing_is_left_to_be_filled_in():
    assert not re.findall(r"^[A-Z]+_[A-Z_]+$", README.read_text(), flags=re.MULTILINE)


def test_named_files_exist():
    named = named_files(README) + re.findall(r"\]\(((?!https?:|#)[^)#]+)", README.read_text())
    assert named
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


def test_every_family_has_a_name_and_a_row():
    from rmm_gnn.sketches import FAMILIES

    table = (ROOT / "docs" / "what_is_kept.md").read_text()
    for name in FAMILIES:
        assert f'"{name}"' in README.read_text()
        assert f'\n| `"{name}"`' in table
