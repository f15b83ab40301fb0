"""The record file survives crashes and refuses what it cannot read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.jsonl import FILE, append_record, read_lines
from benchmarks.harness.records import SCHEMA, make_record
from benchmarks.harness.train import train
from benchmarks.ogbn_arxiv import main
from tests.benchmarks.conftest import NO_RUN


def test_a_record_holds_everything_needed_to_judge_it(make_run, tiny):
    run = make_run()
    record = make_record(run, tiny, environment.describe(torch.device("cpu")), train(run, tiny, quiet=True))
    record = json.loads(json.dumps(record))
    assert record["schema"] == SCHEMA == 3 and record["key"] == run.key and record["features_are_stand_ins"] is False
    assert record["config"]["layers"] == 2 and record["method_config"] is None
    assert record["environment"]["packages"]["torch"] == torch.__version__
    assert record["settings"] == ""
    assert record["theory"] == {"bytes_per_node_layer": 136, "stock_bytes_per_node_layer": 136, "ratio": 1}  # 17 x 8
    assert {"device", "cpu", "git_sha", "python"} <= record["environment"].keys()
    assert {len(record["curves"][name]) for name in ("loss", "epochs", "valid", "test")} == {4}
    for name in ("saved_convolutions_bytes", "saved_total_bytes", "peak_bytes", "epoch_s", "test_accuracy"):
        assert record["results"][name] is not None
    assert record["results"]["saved_host_bytes"] is None  # on CPU there is one memory


def test_the_method_s_own_configuration_is_recorded(make_run, tiny):
    run = make_run(method=("rmm",), rate=(0.5,))
    record = make_record(run, tiny, {}, train(run, tiny, quiet=True))
    assert record["method_config"]["rate"] == 0.5 and record["settings"] == "count_sketch 0.5 fp32"
    assert record["theory"]["ratio"] > 1
    assert "count_sketch" in json.dumps(record["method_config"]["sketch"])


def test_append_and_read(tmp_path):
    folder = tmp_path / "a" / "b"
    assert read_lines(folder, SCHEMA) == []
    for key in "xyz":
        append_record(folder, NO_RUN | {"key": key})
    assert [record["key"] for record in read_lines(folder, SCHEMA)] == ["x", "y", "z"]


def test_a_torn_last_line_is_passed_over_and_then_cut_off(tmp_path):
    append_record(tmp_path, NO_RUN | {"key": "x"})
    with open(tmp_path / FILE, "a") as file:
        file.write('{"schema": 3, "key": "y", "curv')
    assert [record["key"] for record in read_lines(tmp_path, SCHEMA)] == ["x"]
    append_record(tmp_path, NO_RUN | {"key": "z"})
    assert [record["key"] for record in read_lines(tmp_path, SCHEMA)] == ["x", "z"]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    line = json.dumps(NO_RUN)
    (tmp_path / FILE).write_text(f"{line}\nnonsense\n{line}\n")
    with pytest.raises(BenchmarkError, match="damaged at line 2"):
        read_lines(tmp_path, SCHEMA)


@pytest.mark.parametrize(
    "line",
    [
        '{"schema": 3}',
        '{"schema": 3, "key": ["x"], "config": {}, "results": {}}',
        '{"schema": 3, "key": "x", "config": [], "results": {}}',
        '{"schema": 3, "key": "x", "config": {}}',
        "[]", "3", "null",
        "[" * 200_000,
    ],
)  # fmt: skip
def test_json_that_is_no_record_is_an_error(tmp_path, capsys, line: str):
    (tmp_path / FILE).write_text(f"{json.dumps(NO_RUN)}\n{line}\n")
    assert main(["--smoke", "--out", str(tmp_path), "--resume"]) == 2
    said = capsys.readouterr().err
    assert f"error: '{tmp_path / FILE}' is damaged at line 2 (" in said and "Remove that line, or choose" in said


@pytest.mark.parametrize("schema", [1, 99])
def test_another_schema_is_an_error(tmp_path, schema):
    append_record(tmp_path, {"schema": schema})
    with pytest.raises(BenchmarkError, match=rf"must have schema 3 \(got {schema}"):
        read_lines(tmp_path, SCHEMA)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    append_record(tmp_path, NO_RUN | {"loss": [1.0, float("nan"), float("inf")]})
    assert read_lines(tmp_path, SCHEMA)[0]["loss"] == [1.0, None, None]


def test_keys_tell_runs_apart(make_run):
    run = make_run()
    assert run.key == make_run().key
    changes = {"seed": 1, "lr": 0.5, "data_fingerprint": "other", "device": "cuda", "method": "rmm", "threads": 1}
    keys = {replace(run, **{name: value}).key for name, value in changes.items()}
    assert len(keys | {run.key}) == len(changes) + 1
