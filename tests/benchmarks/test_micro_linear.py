"""The layer benchmark on a small layer."""

import json

import pytest
import torch

from benchmarks.micro import linear


def test_prints_a_row_per_layer_and_writes_json(tmp_path, capsys):
    out = tmp_path / "deep" / "linear.json"
    arguments = ["--rows", "200", "--columns", "8", "--outputs", "4", "--rate", "0.5", "0.1", "--paper"]
    assert linear.main([*arguments, "--repetitions", "2", "--device", "cpu", "--out", str(out)]) == 0
    table = capsys.readouterr().out
    for name in (linear.EXACT, "count_sketch 0.5", "count_sketch 0.1", f"{linear.PAPER}, 0.1"):
        assert name in table
    records = {record["layer"]: record for record in json.loads(out.read_text())["layers"]}
    assert records[linear.EXACT]["kept_bytes"] == 200 * 8 * 4
    assert records["count_sketch 0.1"]["kept_bytes"] == 20 * 8 * 4 + 8 * 4 + 8
    assert all(len(record["seconds"]) == 2 for record in records.values())


def test_unknown_family_exits_2(capsys):
    assert linear.main(["--rows", "20", "--sketch", "gauss", "--repetitions", "1"]) == 2
    assert "count_sketch" in capsys.readouterr().err


def test_papers_method_is_unbiased():
    """Mean over draws of the published algorithm against the exact gradient, by z-score, with a power check."""
    torch.manual_seed(0)
    x = torch.rand(40, 3) + 0.5
    weight, bias = torch.randn(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    grad = torch.rand(40, 2) + 0.5
    exact, along = grad.T @ x, []
    for _ in range(1500):
        weight.grad = None
        linear._PaperGaussian.apply(x, weight, bias, 0.5).backward(grad)
        along.append((weight.grad * exact).sum() / exact.square().sum())
    along = torch.stack(along)
    error = along.std() / len(along) ** 0.5
    assert abs(along.mean() - 1) < 5 * error
    assert abs(1.05 * along.mean() - 1) > 5 * error


@pytest.mark.slow
def test_default_size_runs(capsys):
    assert linear.main(["--repetitions", "1"]) == 0
    assert "169,343 x 256 -> 256" in capsys.readouterr().out
