"""The whole-block memory benchmark: every row runs, and its ledger says what was and was not kept."""

import json

import pytest

pytest.importorskip("transformers")

from benchmarks.micro import transformer_memory
from benchmarks.micro.transformer_memory import ATTENTION
from rmm_gnn import RMMConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("memory")
    assert transformer_memory.main(["--smoke", "--rounds", "2", "--device", "cpu", "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def reports(folder):
    record = json.loads((folder / "transformer_memory.json").read_text())
    return record["rows"]


def sums(report):
    total = {}
    for entry in report["entries"]:
        total[entry["operator"]] = total.get(entry["operator"], 0) + entry["saved_bytes"]
    return total


def test_rows_keep_less_and_less(reports):
    rows = ["exact", "rmm 0.1", "rmm 0.1 + lean block", "rmm 0.1 int8 + lean block"]
    kept = [reports[row]["saved_bytes"] for row in rows]
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == len(kept)


def test_attention_is_left_to_torch_or_recomputed(reports):
    of_attention = sums(reports["exact"])[ATTENTION]
    for name, report in reports.items():
        assert sums(report).get(ATTENTION, 0) == (0 if "recomputed" in name else of_attention)


def test_linear_layers_keep_one_sketch_for_each_input(reports):
    # A block reads three tensors besides attention's output: before q, k, v, before the first dense and the second.
    config, rows, width = RMMConfig(rate=0.1), 4 * 32, 64
    block = 2 * config.saved_bytes(rows, width) + config.saved_bytes(rows, 4 * width)
    head = 2 * config.saved_bytes(4, width)
    assert sums(reports["rmm 0.1"])["rmm_gnn.linear_of_kept"] == 2 * block + head


def test_nothing_of_the_block_is_left(reports):
    left = sums(reports["rmm 0.1 + lean block"])
    assert not left.keys() & {"layer_norm", "dropout", "gelu"}
    assert not [entry for entry in reports["rmm 0.1 + lean block"]["entries"] if entry["operator"] == "linear"]


def test_tables_and_picture_are_written(folder, capsys):
    text = (folder / "transformer_memory.md").read_text()
    assert "rmm_gnn.linear_of_kept" in text and "time / exact" in text and "1.00 (1.00-1.00)" in text
    assert (folder / "transformer_memory.png").stat().st_size > 10_000


def test_errors_are_said_early(capsys):
    assert transformer_memory.main(["--codec", "int3"]) == 2
    assert "'codec' must" in capsys.readouterr().err
