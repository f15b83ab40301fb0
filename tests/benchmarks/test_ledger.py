"""``--ledger`` writes one report per row, of the step that is trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.ledger import ledger_stem, write_ledger
from benchmarks.harness.methods import METHODS
from benchmarks.ogbn_arxiv import main


def test_names_are_fit_for_files(make_run):
    run = make_run(method=("rmm-lean",), sketch=("sors:transform=dct",), codec=("int4:group_size=64",))
    stem = ledger_stem(run)
    assert stem == "ledger-rmm-lean-sors-transform-dct-0.1-int4-group_size-64-norm-int2-x0-fp32"


@pytest.mark.parametrize("method", METHODS)
def test_a_row_s_step_is_reported(make_run, tiny, tmp_path: Path, method: str):
    run = make_run(method=(method,), budget=("90%",))
    paths = write_ledger(run, tiny, tmp_path)
    assert [path.name for path in paths] == [f"{ledger_stem(run)}{suffix}" for suffix in (".txt", ".json", ".png")]
    assert paths[0].read_text().strip() and json.loads(paths[1].read_text())
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_the_flag_writes_one_per_row_and_resuming_adds_none(tmp_path: Path, capsys):
    out = tmp_path / "out"
    command = ["--smoke", "--method", "baseline", "rmm", "--ledger", "--out", str(out)]
    assert main(command) == 0
    written = {path: path.stat().st_mtime_ns for path in out.glob("ledger-*")}
    assert sorted(path.name for path in written) == [
        f"ledger-{row}{suffix}"
        for row in ("baseline", "rmm-count_sketch-0.1-fp32")
        for suffix in (".json", ".png", ".txt")
    ]
    assert main([*command, "--resume"]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("ledger-*")} == written
