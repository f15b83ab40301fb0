"""Scripts in docs/examples that show the library at work: they print what they say they show, and are short."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples"
RUN_HERE = (
    ["budget_plan.py", "custom_loop.py", "gcn2_full_batch.py", "hold_the_noise.py"]
    + ["transformer_finetune.py", "unedited_pyg_model.py", "watch_the_noise.py"]
)  # fmt: skip


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Runs an example as a command in an empty folder and returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(name: str) -> str:
        monkeypatch.setattr("sys.argv", [name])
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            runpy.run_path(str(FOLDER / name), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    return run


def numbers(pattern: str, text: str) -> list[float]:
    found = [float(number) for number in re.findall(pattern, text)]
    assert found, f"{pattern} is not in:\n{text}"
    return found


def test_every_script_is_listed():
    listed = re.findall(r"\[(\w+\.py)\]", (FOLDER / "README.md").read_text())
    assert sorted(listed) == [path.name for path in sorted(FOLDER.glob("*.py"))]


@pytest.mark.parametrize("name", RUN_HERE)
def test_scripts_are_short(name):
    assert len((FOLDER / name).read_text().splitlines()) < 60


def test_gcn2_full_batch(shown):
    text = shown("gcn2_full_batch.py")
    exact, lean = numbers(r"(\d+) KiB", text)
    assert 32 * lean < exact
    exact, lean = numbers(r"accuracy ([\d.]+) %", text)
    assert exact > 90 and lean > exact - 3


def test_unedited_pyg_model(shown):
    text = shown("unedited_pyg_model.py")
    (ratio,) = numbers(r"([\d.]+)x less", text)
    assert ratio > 30 and "not compressed: {'div'" in text
    losses = numbers(r"loss ([\d.]+)", text)
    assert losses == sorted(losses, reverse=True)


def test_budget_plan(shown):
    text = shown("budget_plan.py")
    predicted, counted = numbers(r": (\d+)", text.split("predicted", 1)[1].splitlines()[0])
    assert predicted == counted
    assert "exact: reads the input" in text
    (loss,) = numbers(r"10 epochs: ([\d.]+)", text)
    assert loss < 0.5


def test_watch_the_noise(shown):
    text = shown("watch_the_noise.py")
    rows = re.findall(r"^ +(\d+)  (\d)\.weight +([\d.]+) +([\d.]+)$", text, flags=re.MULTILINE)
    assert len(rows) == 9 and all(float(noise) > 0 for *_, noise in rows)
    assert Path("noise.png").read_bytes().startswith(b"\x89PNG")


def test_hold_the_noise(shown):
    measured = numbers(r"measured last at \d: ([\d.]+)", shown("hold_the_noise.py"))
    assert len(measured) == 2 and all(abs(value - 1) < 0.2 for value in measured)


def test_custom_loop(shown):
    text = shown("custom_loop.py")
    (kept,), (whole,) = numbers(r"backward: (\d+)", text), numbers(r"alone has (\d+)", text)
    (sketch,) = numbers(r"formula: (\d+)", text)
    assert kept == 2 * sketch + 2 * whole / 32  # of each hidden matrix a sketch, and a bit an entry
    assert numbers(r"epoch 60: loss ([\d.]+)", text)[0] < 0.2


def test_transformer_finetune(shown, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = shown("transformer_finetune.py")
    assert len(numbers(r"([\d.]+) MiB kept", text)) == 3
    assert all(noise > 0 for noise in numbers(r"data's ([\d.]+)", text))
    assert numbers(r"not seen: ([\d.]+) %", text)[0] > 75
