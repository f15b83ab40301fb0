"""The projection to a large graph is the arithmetic that it says it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.micro.projection import costs_of, main, project, rows_at_most, rows_like


@pytest.fixture
def made(tmp_path: Path) -> Path:
    record = {
        "schema": 3,
        "key": "x",
        "settings": "",
        "loading": "neighbor (fan out 3 2, batch size 20, edge weights scaled)",
        "dataset": {"title": "tiny"},
        "environment": {"device": "a processor", "threads": 1},
        "config": {
            "method": "baseline", "loader": "neighbor", "fan_out": [3, 2], "batch_size": 20, "layers": 2, "hidden": 8,
            "shared_weights": False, "world_size": 2, "seed": 0, "device": "cpu",
            "eval_chunk": 1000,
        },
        "results": {
            "saved_total_bytes": 16000, "epoch_s": 5.0,
            "sampling": {
                "steps_per_epoch": 2, "trained_rows_per_step": 10.0, "rows_per_step": [100.0, 50.0, 10.0, 10.0],
                "entries_per_step": 240.0, "waiting_s": 1.0, "cpu_s": 4.0,
            },
        },
    }  # fmt: skip
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(record) + "\n")
    return path


def test_costs_are_per_row(made: Path):
    record = json.loads(made.read_text())
    costs = costs_of([record])
    assert costs.bytes_per_row == 100  # 16000 / (100 + 50 + 10)
    assert costs.seconds_per_row == pytest.approx(4 / 2 / 160)
    record["config"]["device"] = "cuda"  # whose time is not the processor's
    assert costs_of([record]).seconds_per_row == pytest.approx(5 / 2 / 160)
    assert costs.entries_per_row == 4


def test_rows_of_a_step(made: Path):
    record = json.loads(made.read_text())
    assert rows_like(record) == [200, 100, 20, 20]
    config = record["config"]
    assert rows_at_most(config) == [200, 80, 20, 20]  # 20, 20 + 60, 80 + 120
    assert rows_at_most(config | {"layers": 4}) == [200, 200, 200, 80, 20, 20]
    assert rows_at_most(config | {"layers": 1}) == [80, 20, 20]
    with pytest.raises(BenchmarkError, match=r"'fan_out' must be positive.*bound on neighbours"):
        rows_at_most(config | {"fan_out": [-1]})


def test_a_projected_epoch(made: Path):
    case = project(costs_of([json.loads(made.read_text())]), [200, 100, 20, 20], 7, features=16)
    assert case.kept_bytes == 320 * 100
    assert case.batch_bytes == 200 * 16 * 4 + 2 * 4 * 120 * 12
    assert case.epoch_s == pytest.approx(7 * 320 * 4 / 2 / 160)


def test_the_report_is_called_a_projection(made: Path, capsys):
    assert main([str(made), "--train", "1000", "--processes", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("**Projection, not measured**") and "1,000 / (4 x 20), rounded up: 13." in out
    assert "200, 100, 20, 20" in out and "200, 80, 20, 20" in out and "not measured" in out
    parameters = 2 * 2 * 64 + 2 * 2 * 8 + 129 * 8 + 9 * 172
    assert f"4 x 4 B x {parameters:,}" in out
    assert "features: 53 GiB" in out  # 111,059,956 x 128 x 4 B
    assert "evaluation, 1,000 nodes at a time" in out and "172 classes): 10 GiB" in out  # 111,059,956 x 8 x 3 x 4 B


def test_a_chunk_s_logits_count_where_classes_are_many(made: Path, capsys):
    arguments = ["--nodes", "1000000", "--classes", "4000000"]
    assert main([str(made), *arguments]) == 0
    assert "for 4000000 classes): 15 GiB" in capsys.readouterr().out  # 1,000 x 4,000,000 x 4 B


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl"], "'records' must hold runs with --loader neighbor"),
        (["--processes", "0"], "'processes' must be at least 1"),
    ],
)
def test_what_it_cannot_read_is_refused(made: Path, capsys, arguments: list[str], message: str):
    assert main(arguments if arguments[0] == "none.jsonl" else [str(made), *arguments]) == 2
    assert message in capsys.readouterr().err
