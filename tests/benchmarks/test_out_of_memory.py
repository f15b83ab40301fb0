"""A run that does not fit says what it keeps and what would fit, and the others go on.

No GPU is needed, and none was seen: the step raises PyTorch's own exception, and what a device has free is made up.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness import ledger, out_of_memory
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.out_of_memory import explain
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.training import Training
from benchmarks.ogbn_arxiv import main
from rmm_gnn import MemoryReport

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 4.00 GiB.\nMore lines."
MIB = 2**20


def test_the_others_go_on_and_the_exit_code_tells(tmp_path: Path, monkeypatch, capsys):
    step = Training.run_epoch

    def fails(self: Training) -> None:
        if self._run.method == "baseline":
            raise torch.cuda.OutOfMemoryError(SAID)
        step(self)

    monkeypatch.setattr(Training, "run_epoch", fails)
    out = tmp_path / "out"
    arguments = ["--smoke", "--runs", "1", "--method", "baseline", "rmm", "--out", str(out)]
    assert main(arguments) == 2
    found = capsys.readouterr()
    assert "error: [1/2] baseline seed 0: out of memory (CUDA out of memory. Tried to allocate" in found.err
    assert "measured in a step of a copy on the CPU" in found.err and "More lines" not in found.err
    assert "aten::" in found.err or "linear" in found.err.lower()  # the ledger's rows
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert [record["config"]["method"] for record in records] == ["rmm"]
    assert "Incomplete: 1 of 2 runs" in (out / "table.md").read_text()
    monkeypatch.setattr(Training, "run_epoch", step)
    assert main([*arguments, "--resume"]) == 0
    assert len((out / "records.jsonl").read_text().splitlines()) == 2


def test_data_that_do_not_fit_end_the_command_with_a_line(tmp_path: Path, monkeypatch, capsys):
    def fails(self: NodeDataset, device: torch.device) -> None:
        raise torch.OutOfMemoryError(SAID)

    monkeypatch.setattr(NodeDataset, "to", fails)
    out = tmp_path / "out"
    assert main(["--smoke", "--runs", "1", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert "does not fit into the memory of cpu (CUDA out of memory. Tried" in said and "More lines" not in said
    assert "a --loader, which moves a batch at a time." in said and not out.exists()


def test_a_ledger_that_does_not_fit_leaves_table_and_the_other_ledgers(tmp_path: Path, monkeypatch, capsys):
    measure = ledger.measure_ledger

    def fails(run: RunConfig, dataset: NodeDataset) -> MemoryReport:
        if run.method == "baseline":
            raise torch.OutOfMemoryError(SAID)
        return measure(run, dataset)

    monkeypatch.setattr(ledger, "measure_ledger", fails)
    arguments = ["--smoke", "--runs", "1", "--method", "baseline", "rmm", "--ledger", "--out", str(tmp_path)]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "error: ledger-baseline.txt could not be made: out of memory (CUDA out of memory. Tried" in said
    assert (tmp_path / "table.md").exists() and [path.name[:10] for path in tmp_path.glob("ledger-*.txt")] == [
        "ledger-rmm"
    ]
    monkeypatch.undo()
    assert main([*arguments, "--resume"]) == 0 and (tmp_path / "ledger-baseline.txt").exists()


@pytest.mark.parametrize("loader", ["neighbor", "random-nodes"])
def test_a_batch_that_does_not_fit_is_measured_on_the_cpu(make_run, tiny, device_with, loader: str):
    settings = {"fan_out": (2,)} if loader == "neighbor" else {"num_parts": 4, "parts_per_batch": 2}
    run = make_run(loader=loader, **settings)
    device_with(100 * MIB)
    said = explain(replace(run, device="cuda"), tiny)
    assert re.search(r"A batch has \d+ rows in the first Linear, \d+, \d+ in the blocks", said)
    assert "Kept for backward, measured in a step of a copy on the CPU" in said and "linear" in said.lower()
    assert "rmm --rate 0.5 (" in said and "rmm-lean --rate 0.5 (" in said and "fewer nodes a batch" in said
    device_with(0)
    assert "What would fit, as measured there: no rate." in explain(replace(run, device="cuda"), tiny)


def test_a_batch_too_large_for_the_cpu_is_not_measured(make_run, tiny, monkeypatch):
    monkeypatch.setattr(out_of_memory, "_host_bytes", lambda: 0)
    said = explain(make_run(loader="neighbor"), tiny)
    assert "too large to be measured on the CPU. Take fewer nodes a batch" in said


@pytest.fixture
def device_with(monkeypatch):
    """Makes up how much a CUDA device has free."""

    def make(free: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 4 * free))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)

    return make


def test_the_rate_that_fits_is_the_largest_by_the_closed_form(make_run, tiny, device_with, monkeypatch):
    monkeypatch.setattr(out_of_memory, "_besides", lambda run, dataset: 0)
    run = replace(make_run(method=("rmm",), hidden=256, layers=16), device="cuda:0")
    kept = {rate: out_of_memory._kept_by_construction(replace(run, rate=rate), tiny) for rate in (1.0, 0.5, 0.2, 0.01)}
    assert kept[1.0] > kept[0.5] > kept[0.2] > kept[0.01]
    for rate in (1.0, 0.5, 0.2, 0.01):
        device_with(int(kept[rate]) + 1)
        assert f"What would fit by construction: rmm --rate {rate:g} (" in explain(run, tiny)
    device_with(int(kept[0.01]) - 1)
    assert "no rate; take fewer or narrower layers" in explain(run, tiny)


def test_methods_without_a_rate_of_rows_are_shown_those_that_have_one(make_run, tiny, device_with):
    device_with(100 * MIB)
    said = explain(replace(make_run(), device="cuda"), tiny)
    assert re.search(r"What would fit by construction: rmm --rate 1 \(.*\), rmm-lean --rate 1 \(.*\)\.", said)
    assert "Free on cuda without the run: 100" in said


def test_what_is_too_large_to_be_measured_is_told_by_construction(make_run, tiny, device_with, monkeypatch):
    device_with(100 * MIB)
    monkeypatch.setattr(out_of_memory, "_host_bytes", lambda: 0)
    said = explain(replace(make_run(method=("rmm",)), device="cuda"), tiny)
    assert "by construction (too large to be measured on the CPU): an activation [N, 8] in fp32 takes" in said


def test_an_explanation_that_fails_does_not_end_the_sweep(capsys):
    def fails() -> str:
        raise RuntimeError("no memory here either")

    out_of_memory.report_out_of_memory("[1/1] rmm seed 0", "", fails)
    said = capsys.readouterr().err
    assert "out of memory (no more is known)" in said and "could not be measured (RuntimeError: no memory" in said


@pytest.mark.usefixtures("small_text")
def test_fine_tuning_too(tmp_path: Path, monkeypatch, capsys, device_with):
    from benchmarks.glue import main as glue
    from benchmarks.text import out_of_memory as text
    from benchmarks.text.training import FineTuning

    step = FineTuning.run_step

    def fails(self: FineTuning) -> bool:
        if self._run.method == "baseline":
            raise torch.OutOfMemoryError(SAID)
        return step(self)

    monkeypatch.setattr(FineTuning, "run_step", fails)
    monkeypatch.setattr(text, "free_bytes", lambda device: 64 * MIB)
    arguments = ["--smoke", "--task", "sst2", "--runs", "1", "--method", "rmm", "--max-steps", "2"]
    assert glue([*arguments, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "baseline seed 0: out of memory (CUDA out of memory" in said and "In all: " in said
    assert "What would fit, as measured there: rmm-lean --rate 0.5" in said
    assert len((tmp_path / "out" / "records.jsonl").read_text().splitlines()) == 1


@pytest.fixture
def small_text(monkeypatch):
    from benchmarks.text import models

    size = models.TinySize(layers=1, hidden=64, heads=2, intermediate=128, vocabulary=400)
    monkeypatch.setattr(models, "TINY_SIZE", size)
