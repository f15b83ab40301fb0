"""The picture of accuracy and time against bytes, drawn from recorded runs of several folders."""

from __future__ import annotations

import copy

import pytest
from matplotlib.axes import Axes

from benchmarks.frontier import main, read, share
from benchmarks.harness.jsonl import append_record
from benchmarks.harness.records import SCHEMA
from benchmarks.harness.rows import BASELINE


@pytest.fixture
def folders(records, tmp_path):
    """Two folders: the baseline's runs, and those of the method."""
    for name, method in (("base", "baseline"), ("rmm", "rmm")):
        for entry in records:
            if entry["config"]["method"] == method:
                append_record(tmp_path / name, {**entry, "schema": SCHEMA})
    return [tmp_path / "base", tmp_path / "rmm"]


def test_folders_are_read_together(folders):
    rows = read(folders)
    assert [len(group) for group in rows.values()] == [3, 3]
    (method,) = [row for row in rows if row != BASELINE]
    assert share(rows[method], rows[BASELINE]) == pytest.approx(25.0)  # 4 MiB of 16


def test_it_draws_what_was_recorded(folders, tmp_path, monkeypatch, capsys):
    drawn = []
    original = Axes.errorbar
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda self, x, y, **style: drawn.append((x, y, style["yerr"])) or original(self, x, y, **style),
    )
    paths = [str(path) for path in folders]
    out = tmp_path / "picture.png"
    assert main(["--accuracy", *paths, "--time", *paths, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG") and str(out) in capsys.readouterr().out
    (base, method), (base_time, method_time) = drawn[:2], drawn[2:]
    assert base == (100.0, pytest.approx(0.0), None)
    assert method[:2] == (pytest.approx(25.0), pytest.approx(1 / 3))  # accuracies 69, 72, 73 against 70, 72, 71
    assert method[2] == pytest.approx(3.795, abs=1e-3)  # 4.3027 standard errors of -1, 0, 2
    assert base_time[1:] == (1.0, None) and method_time[1:] == (1.0, None)


@pytest.mark.parametrize("case", ["nothing", "no baseline", "another protocol", "no common seed"])
def test_it_says_what_to_put_right(case, folders, records, tmp_path, capsys):
    if case == "nothing":
        folders, says = [tmp_path / "none"], "has no finished runs"
    elif case == "no baseline":
        folders, says = folders[1:], "must have a baseline among them"
    else:
        other = copy.deepcopy(records[1])
        if case == "another protocol":
            other["config"]["hidden"], says = 1024, "must have one 'hidden'"
        else:
            other["config"]["seed"], other["settings"], says = 99, "another", "a seed that the baseline has"
        append_record(folders[1], {**other, "schema": SCHEMA})
    paths = [str(path) for path in folders]
    assert main(["--accuracy", *paths, "--time", *paths, "--out", str(tmp_path / "picture.png")]) == 2
    assert says in capsys.readouterr().err
