"""The benchmark of the probe watches every product, in both modes, and reports what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.micro.probe import EVERY, main


def test_table_and_json(tmp_path: Path, capsys):
    out = tmp_path / "probe.json"
    command = ["--dataset", "digits", "--layers", "2", "--hidden", "8", "--repetitions", "2", "--device", "cpu"]
    assert main([*command, "--out", str(out)]) == 0
    modes = json.loads(out.read_text())["modes"]
    assert [mode["mode"] for mode in modes] == ["exact", "sketch"]
    for mode in modes:
        assert mode["products"] == 2 + 2 * 2  # two Linears, two weights in each convolution
        assert len(mode["watched_s"]) == len(mode["other_s"]) == 2
        assert mode["overhead"] == pytest.approx((mode["ratio"] - 1) / EVERY)
    assert "6 products watched" in capsys.readouterr().out


def test_what_can_be_put_right(capsys):
    assert main(["--dataset", "digits", "--layers", "0"]) == 2
    assert "error: 'layers'" in capsys.readouterr().err
