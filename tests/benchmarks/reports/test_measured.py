"""Table 3, left, and Figure 2: pages from measurements made by hand, and the measurements themselves at tiny size."""

from __future__ import annotations

import re

import pytest
import torch

from benchmarks.harness.jsonl import append_record
from benchmarks.reports import fig2, table3_memory
from benchmarks.reports.measured import SCHEMA, complete
from benchmarks.reports.page import write
from benchmarks.reports.rows import EXACT, Row
from benchmarks.reports.steps import measure_memory, measure_times
from benchmarks.reports.workload import TINY, Workload, applied
from tests.benchmarks.reports.conftest import ENVIRONMENT

pytest.importorskip("transformers")

GIB = 2**30
CPU = torch.device("cpu")
SMALL = Workload(TINY, "eager", batch_size=4, length=32)
HALF, TENTH = (Row("rmm", rate, "gaussian", "fp32") for rate in (0.5, 0.1))


def measured(row, peak, saved, batch_size, model="roberta-base-random", **config):
    out = {"out_of_memory": True} if peak is None else {
        "out_of_memory": False, "peak_bytes": int(peak * GIB), "saved_bytes": int(saved * GIB),
        "peak_definition": "what counts", "static_bytes": 2 * GIB,
    }  # fmt: skip
    workload = {"model": model, "attention": "eager", "batch_size": batch_size, "length": 64}
    return {"config": {"row": row, "center": False, "workload": workload, **config}, "results": out,
            "environment": ENVIRONMENT}  # fmt: skip


def test_table3_stands_beside_the_papers(row, tmp_path):
    records = [
        measured(EXACT, 10, 8, 128, task="mrpc"), measured(HALF, 9, 6, 128, task="mrpc"),
        measured(TENTH, 7, 4, 128, task="mrpc"), measured(EXACT, None, None, 32, task="sst2"),
        measured(TENTH, 2, 1, 32, task="sst2"), measured(EXACT, 10, 8, 4, task="qnli"),
        measured(HALF, 9, 6, 4, task="qnli"),
    ]  # fmt: skip
    text = write(table3_memory.page(records), tmp_path, "table3_memory")
    assert row(text, "MRPC", "128", "64", "exact")[4:] == ["10", "-", "8", "-", "-", "-"]
    assert row(text, "MRPC", "128", "64", "0.5")[4:] == ["9", "10.0", "6", "25.0", "20.0", "6.3"]
    assert row(text, "MRPC", "128", "64", "0.1")[4:] == ["7", "30.0", "4", "50.0", "40.0", "23.3"]
    assert row(text, "SST-2", "32", "64", "exact")[4:] == ["out of memory", *"-----"]
    assert row(text, "SST-2", "32", "64", "0.1")[4:] == ["2", "-", "1", "-", "-", "25.5"]
    assert row(text, "QNLI", "4", "64", "0.5")[4:] == ["9", "10.0", "6", "25.0", "23.5", "4.2"]  # 8 of 2 + 32 GiB
    for words in ("smaller than the paper's: QNLI, SST-2.", "random weights", "what counts", "chosen here"):
        assert words in text
    assert "Not comparable" not in text
    assert (tmp_path / "table3_memory.png").stat().st_size > 1000


def test_figure2(row, tmp_path):
    seconds = [[EXACT, [1.0, 1.0, 1.0]], [HALF, [2.0, 2.0, 4.0]], [TENTH, [0.5, 0.5, 0.5]]]
    times = measured(None, 0, 0, 8, kind="time") | {"results": {"seconds": seconds}}
    memory = [
        measured(EXACT, 4, 3, 16, kind="memory"), measured(HALF, 3, 2, 16, kind="memory"),
        measured(EXACT, None, None, 32, kind="memory"), measured(HALF, 5, 4, 32, kind="memory"),
    ]  # fmt: skip
    text = write(fig2.page([*memory, times]), tmp_path, "fig2")
    assert row(text, "16") == ["16", "4 (3)", "3 (2)"] and row(text, "32") == ["32", "out of memory", "5 (4)"]
    assert row(text, "exact", "1.000") == ["exact", "1.000", "1.000 to 1.000", "1", "8"]
    assert row(text, "0.5") == ["0.5", "0.500", "0.312 to 0.500", "2", "4"]
    assert row(text, "0.1")[1] == "2.000"
    assert "in each of 3 rounds" in text and "faster than exact only at rates of 0.1 and below" in text
    assert (tmp_path / "fig2.png").stat().st_size > 1000


def test_a_lower_rate_keeps_less_and_leaves_the_model_as_it_was():
    found = {row: measure_memory(SMALL, row, False, CPU)["saved_bytes"] for row in (EXACT, HALF, TENTH)}
    assert found[EXACT] > found[HALF] > found[TENTH]
    model = SMALL.build(CPU)
    kinds, parameters = [type(module) for module in model.modules()], list(model.parameters())
    with applied(model, Row("rmm-lean", 0.1, "count_sketch", "int8"), True) as loss:
        assert [type(module) for module in model.modules()] != kinds
        loss(**SMALL.inputs(model, CPU)).backward()
    assert [type(module) for module in model.modules()] == kinds
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_model_has_the_attention_that_was_asked_for(attention):
    model = Workload(TINY, attention, 1, 8).build(CPU)
    assert model.config._attn_implementation == attention and model.training


def test_times_have_one_value_a_round_for_every_row():
    found = measure_times(Workload(TINY, "eager", 2, 8), [EXACT, HALF], False, CPU, rounds=3)
    assert {row: len(values) for row, values in found.items()} == {EXACT: 3, HALF: 3}
    assert min(min(values) for values in found.values()) > 0


def test_what_is_recorded_is_not_measured_again(tmp_path):
    wanted = [{"task": task, "row": HALF} for task in ("mrpc", "qnli")]
    seen = []

    def measure(config):
        seen.append(config["task"])
        return {"saved_bytes": 1}

    first = complete(tmp_path, wanted[:1], CPU, measure, lambda: seen.append("warm-up"))
    again = complete(tmp_path, wanted, CPU, measure, lambda: seen.append("warm-up"))
    assert seen == ["warm-up", "mrpc", "warm-up", "qnli"]
    assert [record["config"]["task"] for record in again] == ["mrpc", "qnli"]
    assert again[0]["results"] == first[0]["results"] and Row(*again[0]["config"]["row"]) == HALF
    complete(tmp_path, wanted, CPU, measure, lambda: seen.append("warm-up"))
    assert len(seen) == 4


@pytest.mark.parametrize("report", [table3_memory, fig2])
def test_smoke(report, tmp_path, capsys):
    assert report.main(["--smoke", "--out", str(tmp_path)]) == 0
    text = (tmp_path / f"{report.NAME}.md").read_text()
    assert text in capsys.readouterr().out
    assert "a tiny RoBERTa" in text and "tiny size" in text and f"scripts/reproduce_{report.NAME}.sh --smoke" in text
    assert (tmp_path / f"{report.NAME}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rate", "0.5", "0.5"], "'rate' must name different values"),
        (["--rate", "1.5"], r"'rate' must lie in \(0, 1\]"),
        (["--sketch", "nothing"], "'sketch' must be"),
        (["--threads", "0"], "'threads' must be at least 1"),
        (["--length", "0"], "'length' must be at least 1"),
        (["--length", "600"], "'length' must be at most 512 for tiny"),
        (["--model", "./nowhere"], "'model' must be roberta-base-random, tiny, a folder or a hub name"),
        (["--shrink", "0"], "'shrink' must be at least 1"),
    ],
)
def test_errors(flags, message, tmp_path, capsys):
    assert table3_memory.main(["--smoke", "--out", str(tmp_path / "out"), *flags]) == 2
    assert re.search(f"^error: {message}", capsys.readouterr().err, re.MULTILINE)
    assert not (tmp_path / "out").exists()


def test_another_kind_of_records_is_refused(tmp_path, capsys):
    append_record(tmp_path, {"schema": "something else", "key": "0"})
    assert fig2.main(["--smoke", "--out", str(tmp_path)]) == 2
    assert f"must have schema {SCHEMA}" in capsys.readouterr().err
