"""The benchmark of tensor products: what it captures, and that its numbers are the closed forms at equal size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.micro.captured_text import CapturedLayer, capture_layers
from benchmarks.micro.kronecker import EXACT, MASKED, OTHERS, PRODUCTS, Point, main, measure, summary, time_all
from benchmarks.text import models
from benchmarks.text.data import encode, load
from benchmarks.text.models import TinySize, open_model
from benchmarks.text.synthetic import write_task
from rmm_gnn import CountSketch, KroneckerSketch, RMMConfig
from rmm_gnn.diagnostics import rmm_variance

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model, tinier, and no hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(models, "TINY_SIZE", TinySize(layers=1, hidden=16, heads=2, intermediate=32, vocabulary=300))


def captured(num_sequences: int = 6, length: int = 10) -> CapturedLayer:
    mask = torch.arange(length) < torch.arange(length - num_sequences + 1, length + 1).unsqueeze(1)
    x = torch.randn(num_sequences, length, 5)
    return CapturedLayer("layer.weight", x, torch.randn(num_sequences, length, 4) * mask.unsqueeze(-1), mask)


def test_noise_is_that_of_the_closed_forms():
    seen = captured()
    points = {point.sketch: point for point in measure(seen, [0.3])}
    assert set(points) == {*PRODUCTS, *OTHERS}
    x, y = seen.x.flatten(0, 1), seen.y.flatten(0, 1)
    signal = (x.T @ y).square().sum()
    size = KroneckerSketch(inner_rows=10).admissible_size(60, 18)
    assert {points[name].size for name in ("kronecker", *OTHERS)} == {size}
    expected = {
        "kronecker": rmm_variance(x, y, RMMConfig(size=size, sketch=KroneckerSketch(inner_rows=10))),
        "count_sketch": rmm_variance(x, y, RMMConfig(size=size)),
        MASKED: rmm_variance(seen.x[seen.mask], seen.y[seen.mask], RMMConfig(size=size)),
    }
    for name, variance in expected.items():
        assert points[name].noise == pytest.approx(float(variance / signal), rel=1e-4)
    outer = KroneckerSketch(inner_rows=10, reduce="outer")
    assert points["kronecker, outer"].size == outer.admissible_size(60, size) == 10


def test_the_summary_is_of_noise_at_one_size():
    def point(sketch: str, size: int, noise: float) -> Point:
        return Point("a", 6, 10, 0.5, sketch, size, noise)

    points = [point("kronecker", 30, 3.0), point("kronecker, outer", 20, 3.0), point("count_sketch", 30, 2.0)]
    lines = summary(points).splitlines()
    assert "kronecker: 1.50 to 1.50" in lines[2] and "outer: 1.00 to 1.00" in lines[3]
    assert "inner: no layer has a gradient" in lines[4]


def test_every_gradient_is_timed():
    seconds = time_all(captured(), 0.3, rounds=2)
    assert set(seconds) == {EXACT, *PRODUCTS, *OTHERS}
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())


def test_captured_are_inputs_and_gradients_by_sequence(tmp_path: Path):
    write_task("sst2", tmp_path)
    data = load("sst2", str(tmp_path))
    source = open_model("tiny", data, None)
    encoded = encode(data.task, data.train, source.tokenizer, source.max_length)
    given = {"steps": 2, "batch_size": 8, "lr": 1e-3, "seed": 0, "device": torch.device("cpu")}
    seen = capture_layers(source, data.task, encoded, layers=r".*(query|output\.dense)\.weight", **given)
    assert [layer.name.split("layer.0.")[1] for layer in seen] == [
        "attention.self.query.weight",
        "attention.output.dense.weight",
        "output.dense.weight",
    ]
    for layer in seen:
        assert layer.x.shape[:2] == layer.y.shape[:2] == layer.mask.shape and layer.mask.shape[0] == 8
        assert (layer.y[~layer.mask] == 0).all() and (layer.y[layer.mask] != 0).any()
    assert (seen[-1].y[:, 1:] == 0).all()  # the head reads the first token alone


def test_tables_and_json(tmp_path: Path, capsys):
    command = ["--task", "sst2", "--steps", "2", "--batch-size", "6", "--rate", "0.5", "0.2", "--rounds", "1"]
    assert main([*command, "--device", "cpu", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "kronecker.json").read_text())
    assert len(found["points"]) == 3 * 2 * (len(PRODUCTS) + len(OTHERS))
    assert all(math.isfinite(point["noise"]) and point["noise"] > 0 for point in found["points"])
    printed = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in printed
    assert "kronecker, outer" in printed and "made-up sentences" in printed and "time / exact" in printed


def test_a_count_sketch_is_what_a_sequence_of_one_token_gives():
    x, y = torch.randn(40, 3), torch.randn(40, 2)
    seen = CapturedLayer("one", x.unsqueeze(1), y.unsqueeze(1), torch.ones(40, 1, dtype=torch.bool))
    points = {point.sketch: point.noise for point in measure(seen, [0.25])}
    assert points["kronecker"] == pytest.approx(points["count_sketch"], rel=1e-5)
    mean = x.mean(0)
    variance = CountSketch().variance(x, y, 10, mean=mean) / (x.T @ y).square().sum()
    assert points["count_sketch"] == pytest.approx(float(variance), rel=1e-5)


@pytest.mark.parametrize("wrong", [["--rate", "2"], ["--steps", "0"], ["--layers", "nothing"], ["--data-dir", "/none"]])
def test_what_can_be_put_right(wrong, capsys):
    assert main(["--task", "sst2", "--steps", "1", "--batch-size", "2", *wrong]) == 2
    assert "error: '" in capsys.readouterr().err
