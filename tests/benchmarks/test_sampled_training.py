"""Runs on sampled batches: they replay, resume, learn, and are told apart in records and tables."""

from __future__ import annotations

import json
import re

import pytest
import torch

from benchmarks.harness.config import resolve
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.ledger import measure_ledger
from benchmarks.harness.ranks import Ranks
from benchmarks.harness.records import make_record
from benchmarks.harness.report import format_report
from benchmarks.harness.run_checkpoints import RunCheckpoints
from benchmarks.harness.sampled_training import SampledTraining
from benchmarks.harness.sweep import run_sweep
from benchmarks.harness.train import train
from tests.benchmarks.loading import EVERY, SMALL

METHODS = ["baseline", "rmm", "rmm-lean", "exact", "checkpoint", "offload"]


@pytest.fixture
def make_sampled(make_run):
    def make(loader: str = "random-nodes", **given: object):
        return make_run(loader=loader, epochs=given.pop("epochs", 3), **(SMALL[loader] | given))

    return make


@pytest.mark.parametrize(
    ("loader", "method"),
    [("neighbor", name) for name in METHODS]
    + [pytest.param(*case.values, "rmm-lean", marks=case.marks) for case in EVERY if case.values[0] != "neighbor"],
)
def test_a_run_replays_bit_for_bit(make_sampled, tiny, loader: str, method: str):
    run = make_sampled(loader, method=(method,), dropout=0.3, rate=(0.5,))
    first = train(run, tiny, quiet=True)
    torch.rand(13)
    second = train(run, tiny, quiet=True)
    assert (first.loss, first.valid, first.test) == (second.loss, second.valid, second.test)
    assert first.sampling["digests"] == second.sampling["digests"]
    other = train(make_sampled(loader, method=(method,), dropout=0.3, rate=(0.5,), seed=1), tiny, quiet=True)
    assert other.loss != first.loss


@pytest.mark.parametrize("loader", EVERY)
def test_a_run_goes_on_bit_for_bit(make_sampled, tiny, tmp_path, loader: str):
    run = make_sampled(loader, method=("rmm-lean",), dropout=0.3, rate=(0.5,), epochs=5)
    whole = train(run, tiny, quiet=True)
    first = SampledTraining(run, tiny)
    for _ in range(2):
        first.run_epoch()
    RunCheckpoints(tmp_path, run.key, every=1).write(first.state_dict())
    torch.rand(13)
    resumed = train(run, tiny, quiet=True, checkpoints=RunCheckpoints(tmp_path, run.key, every=0, resume=True))
    assert resumed.resumptions == 1
    assert (resumed.loss, resumed.valid, resumed.test) == (whole.loss, whole.valid, whole.test)
    costs = {"waiting_s": None, "cpu_s": None}
    assert resumed.sampling | costs == whole.sampling | costs


@pytest.mark.parametrize("loader", EVERY)
def test_training_learns(make_sampled, tiny, loader: str):
    result = train(make_sampled(loader, epochs=25, lr=0.03, dropout=0.0), tiny, quiet=True)
    assert result.loss[-1] < 0.5 * result.loss[0]
    assert result.epoch_s > result.sampling["waiting_s"] > 0 and result.sampling["cpu_s"] > 0


@pytest.mark.parametrize("method", ["checkpoint", "offload"])
def test_what_is_not_an_estimate_trains_as_the_baseline(make_sampled, tiny, method: str):
    expected, result = (
        train(make_sampled("neighbor", method=(name,), dropout=0.5), tiny, quiet=True) for name in ("baseline", method)
    )
    assert (result.loss, result.valid, result.test) == (expected.loss, expected.valid, expected.test)


def test_all_methods_see_the_same_batches(make_sampled, tiny):
    """Though sketches, too, draw from PyTorch's generator."""
    seen = {
        str(train(make_sampled("neighbor", method=(name,), rate=(0.5,)), tiny, quiet=True).sampling["rows_per_step"])
        for name in METHODS
    }
    assert len(seen) == 1


def test_rmm_keeps_less_of_a_batch(make_sampled, tiny):
    """And what lives as long as a batch is not counted, for stock keeps its matrices in every convolution."""
    baseline, rmm, lean = (
        train(make_sampled(method=(name,), rate=(0.2,), dropout=0.0, epochs=1), tiny, quiet=True)
        for name in ("baseline", "rmm", "rmm-lean")
    )
    rows = 20  # of 60 nodes, in one of three parts
    unit = 4 * 8 * rows
    assert baseline.saved.convolutions == 2 * 2 * unit
    assert rmm.saved.convolutions < baseline.saved.convolutions / 2
    assert lean.saved.total < rmm.saved.total < baseline.saved.total


def test_records_and_tables_say_how_batches_were_made(make_sampled, tiny):
    run = make_sampled("neighbor")
    environment = {
        "device": "a processor", "threads": 1, "git_sha": None, "git_dirty": False,
        "packages": {"torch": "2", "torch-geometric": "3"},
    }  # fmt: skip
    record = json.loads(json.dumps(make_record(run, tiny, environment, train(run, tiny, quiet=True))))
    assert record["config"]["loader"] == "neighbor" and record["config"]["fan_out"] == [3, 2]
    assert record["config"]["world_size"] == 1 and record["config"]["num_parts"] is None
    sampling = record["results"]["sampling"]
    assert sampling["steps_per_epoch"] == 1 and sampling["trained_rows_per_step"] == 6
    assert len(sampling["rows_per_step"]) == 4 and sampling["rows_per_step"][-1] == 6 and len(sampling["digests"]) == 1
    text = format_report([record])
    assert "loader neighbor (fan out 3 2, batch size 10, edge weights scaled)\n" in text
    assert "Sampled: 1 steps an epoch in each of 1 processes" in text and "waiting for their batches" in text


@pytest.mark.parametrize("loader", ["neighbor", "random-nodes"])
def test_the_ledger_is_that_of_a_batch(make_sampled, tiny, loader: str):
    baseline, rmm = (
        measure_ledger(make_sampled(loader, method=(name,), rate=(0.2,)), tiny) for name in ("baseline", "rmm")
    )
    assert 0 < rmm.saved_bytes < baseline.saved_bytes < 60 * 8 * 4 * 8  # less than eight activations of all nodes


@pytest.mark.parametrize("loader", ["neighbor", "random-nodes"])
def test_the_ledger_counts_what_the_record_does(make_sampled, tiny, loader: str):
    run = make_sampled(loader, method=("baseline",))
    assert measure_ledger(run, tiny).saved_bytes == SampledTraining(run, tiny).curves.saved["total"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_does_not_fit_says_what_to_do(monkeypatch, tmp_path, capsys, processes: int):
    def fails(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    class Alone(Ranks):
        """The first of some processes, without the others."""

        def gathered(self, value):
            return [value] * self.world_size

    monkeypatch.setattr("benchmarks.harness.sweep.train", fails)
    sweep = resolve({"smoke": True, "loader": "random-nodes", "method": ("baseline",), "runs": 1, "out": str(tmp_path)})
    message = r"out of memory \(CUDA out of memory"
    if processes == 1:
        assert run_sweep(sweep) == 2
        said = capsys.readouterr().err
    else:  # the others wait for a step that will not come: this one ends, and torchrun ends them
        with pytest.raises(BenchmarkError, match=message) as raised:
            run_sweep(sweep, Alone(0, processes, 0))
        said = str(raised.value)
    assert re.search(message, said) and "measured in a step of a copy on the CPU" in said and "In all: " in said
    assert (
        re.search(r"A batch has [\d,]+ rows in the first Linear", said)
        and "Take fewer nodes a batch (--batch-size" in said
    )
