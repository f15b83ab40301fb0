"""The table and the picture of noise against time are made; what is timed is the gradient that training computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.micro.captured import Captured
from benchmarks.micro.compute import EXACT, gradient_of, main, time_all
from rmm_gnn import RMMConfig
from rmm_gnn.diagnostics import rmm_variance


def test_table_json_and_picture(tmp_path: Path, capsys):
    command = ["--dataset", "digits", "--layers", "1", "--hidden", "8", "--epoch", "2", "--rate", "0.5", "0.1"]
    command += ["--sketch", "count_sketch", "importance_sampling", "gaussian", "--repetitions", "2"]
    assert main([*command, "--max-entries", "4e5", "--device", "cpu", "--out", str(tmp_path)]) == 0
    timings = json.loads((tmp_path / "compute.json").read_text())["timings"]
    # 1797 rows: at rate 0.5 the Gaussian S has 1.6 million entries, at 0.1 a fifth of that.
    assert len(timings) == 1 + 2 * 2 * 2 + 2
    assert all(len(timing["seconds"]) == 2 and timing["ratio"] > 0 for timing in timings)
    assert timings[0]["label"] == EXACT and all(timing["noise"] > 0 for timing in timings[1:])
    assert (tmp_path / "compute.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "| count_sketch int2" in printed and "Left out: 2 settings" in printed


def seen():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 8, generator=generator) + 1, torch.randn(300, 5, generator=generator)
    return Captured(epoch=1, layer="layer", x=x, y=y, x_0=x, row_norms=torch.linalg.vector_norm(y, dim=1))


@pytest.mark.parametrize("sketch", ["count_sketch", "importance_sampling"])
def test_the_gradient_has_the_noise_of_the_table(sketch):
    torch.manual_seed(0)
    layer, config = seen(), RMMConfig(rate=0.2, sketch=sketch, codec="int4")
    exact, draws = layer.y.T @ layer.x, 600
    found = [float((gradient_of(layer, config) - exact).square().sum()) for _ in range(draws)]
    norms = layer.row_norms if sketch == "importance_sampling" else None
    expected = float(rmm_variance(layer.x, layer.y, config, num_draws=50, row_norms=norms))
    assert sum(found) / draws == pytest.approx(expected, rel=0.1)


def test_what_has_taken_its_time_is_not_repeated():
    timings = time_all(seen(), [("count_sketch", RMMConfig(rate=0.2))], rounds=5, limit_s=0.0)
    assert [len(timing.seconds) for timing in timings] == [1, 1]


@pytest.mark.parametrize("wrong", [["--rate", "2"], ["--codec", "int3"], ["--sketch", "quantum"], ["--epoch", "0"]])
def test_what_can_be_put_right(wrong, capsys):
    assert main(["--dataset", "digits", *wrong]) == 2
    assert "error: '" in capsys.readouterr().err
