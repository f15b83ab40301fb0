"""The layer benchmark on small layers."""

import json

import pytest
import torch

from benchmarks.micro import linear, ways

SMALL = ["--no-gate", "--repetitions", "2", "--device", "cpu"]


def test_prints_a_row_per_layer_and_writes_json(tmp_path, capsys):
    out = tmp_path / "deep" / "linear.json"
    arguments = ["--shape", "200x8x4", "100x6x5", "--rate", "0.5", "0.1", "--codec", "fp32", "int8", *SMALL]
    assert linear.main([*arguments, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "200 x 8 -> 4" in text and "100 x 6 -> 5" in text and text.count("UNVERIFIED") == 2
    rows = [row for row in json.loads(out.read_text())["rows"] if row["shape"] == "200x8x4"]
    records = {row["layer"]: row for row in rows}
    papers = [f"{ways.PAPER}, 0.5", f"{ways.PAPER}, 0.1"]
    ours = [f"count_sketch {rate}{codec}" for rate in ("0.5", "0.1") for codec in ("", " int8")]
    assert list(records) == [ways.LINEAR, ways.CHECKPOINT, ways.OFFLOAD, ways.EXACT, *papers, *ours]
    assert all(name in text for name in records)
    assert all(0 < record["seconds"]["low"] <= record["seconds"]["high"] for record in records.values())
    assert records[ways.LINEAR]["ratio"] == {"low": 1.0, "median": 1.0, "high": 1.0}


def test_kept_is_what_nobody_else_keeps(tmp_path):
    out = tmp_path / "linear.json"
    assert linear.main(["--shape", "4000x64x32", "--rate", "0.1", *SMALL, "--max-entries", "1", "--out", str(out)]) == 0
    kept = {row["layer"]: row["kept_bytes"] for row in json.loads(out.read_text())["rows"]}
    x = 4000 * 64 * 4
    # The allocator rounds up, and counts the numbers that a call makes for itself.
    assert kept[ways.LINEAR] == pytest.approx(x, abs=1024)
    assert kept[ways.CHECKPOINT] == pytest.approx(x, abs=8192)  # random state of the generator
    assert kept["count_sketch 0.1"] == pytest.approx(x / 10 + 64 * 4 + 8, abs=1024)
    assert f"{ways.PAPER}, 0.1" not in kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sketch", "gauss"], "count_sketch"),
        (["--shape", "20x3"], "'shape' must be ROWSxCOLUMNSxOUTPUTS"),
        (["--repetitions", "0"], "'repetitions' must be at least 1"),
        (["--backend", "cuda"], "'backend' must be a known name"),
    ],
)
def test_what_can_be_put_right_exits_2(arguments, message, capsys):
    assert linear.main(["--no-gate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_papers_method_is_unbiased():
    """Mean over draws of the published algorithm against the exact gradient, by z-score, with a power check."""
    torch.manual_seed(0)
    x = torch.rand(40, 3) + 0.5
    weight, bias = torch.randn(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    grad = torch.rand(40, 2) + 0.5
    exact, along = grad.T @ x, []
    for _ in range(1500):
        weight.grad = None
        ways.PaperGaussian.apply(x, weight, bias, 0.5).backward(grad)
        along.append((weight.grad * exact).sum() / exact.square().sum())
    along = torch.stack(along)
    error = along.std() / len(along) ** 0.5
    assert abs(along.mean() - 1) < 5 * error
    assert abs(1.05 * along.mean() - 1) > 5 * error


@pytest.mark.slow
def test_default_shapes_run_behind_their_tests(capsys):
    assert linear.main(["--repetitions", "1"]) == 0
    text = capsys.readouterr().out
    assert "169,343 x 256 -> 256" in text and "UNVERIFIED" not in text
