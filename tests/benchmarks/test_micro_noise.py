"""The table and the picture of noise against bytes are made, and say what the closed forms say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.micro.captured import Captured
from benchmarks.micro.noise import main, measure
from rmm_gnn import RMMConfig
from rmm_gnn.diagnostics import rmm_variance


def test_table_json_and_picture(tmp_path: Path, capsys):
    command = ["--dataset", "digits", "--layers", "2", "--hidden", "8", "--epochs", "1", "3", "--rate", "0.5", "0.1"]
    command += ["--sketch", "count_sketch", "row_sampling", "--codec", "fp32", "int2", "--out", str(tmp_path)]
    assert main([*command, "--device", "cpu"]) == 0
    points = json.loads((tmp_path / "noise.json").read_text())["points"]
    assert len(points) == 2 * 2 * 2 * 2 * 2 * 2  # epochs, layers, families, codecs, rates, centring
    assert {(point["epoch"], point["layer"]) for point in points} == {(e, f"convs.{i}") for e in (1, 3) for i in (0, 1)}
    assert all(point["noise"] > 0 for point in points)
    assert (tmp_path / "noise.png").read_bytes().startswith(b"\x89PNG")
    assert not any(point["anchor"] for point in points)
    printed = capsys.readouterr().out
    assert "| count_sketch int2" in printed and "noise of the data, (9)" in printed


def seen(x, y, x_0=None):
    return Captured(epoch=7, layer="layer", x=x, y=y, x_0=x if x_0 is None else x_0, row_norms=None)


def test_points_are_the_closed_forms():
    torch.manual_seed(0)
    x, y = torch.randn(300, 8) + 1, torch.randn(300, 5)
    points = list(measure(seen(x, y), ["count_sketch"], ["fp32", "int4"], [0.2]))
    assert [(point.center, point.codec) for point in points] == [
        (c, d) for c in (True, False) for d in ("fp32", "int4")
    ]
    for point in points:
        config = RMMConfig(rate=0.2, codec=point.codec, center=point.center)
        expected = rmm_variance(x, y, config) / (x.T @ y).square().sum()
        assert point.noise == pytest.approx(float(expected), rel=1e-3)
        assert point.share == config.saved_bytes(300, 8) / x.nbytes


def test_anchored_points_are_the_closed_forms_of_the_residual():
    torch.manual_seed(0)
    x, y = torch.randn(300, 8) + 1, torch.randn(300, 5)
    x_0 = x + torch.randn(300, 8)
    names = ["count_sketch", "norm_sampling"]
    points = [point for point in measure(seen(x, y, x_0), names, ["int4"], [0.2], anchor=True) if point.anchor]
    assert [point.label for point in points] == ["count_sketch int4, anchored"]
    config = RMMConfig(rate=0.2, codec="int4")
    expected = rmm_variance(x, y, config, anchor=x_0) / (x.T @ y).square().sum()
    assert points[0].noise == pytest.approx(float(expected), rel=1e-3)
    assert points[0].share == (config.saved_bytes(300, 8) + 4 * 8 * 8) / x.nbytes


@pytest.mark.parametrize("wrong", [["--rate", "2"], ["--codec", "int3"], ["--sketch", "quantum"], ["--epochs", "0"]])
def test_what_can_be_put_right(wrong, capsys):
    assert main(["--dataset", "digits", *wrong]) == 2
    assert "error: '" in capsys.readouterr().err
