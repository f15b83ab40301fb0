"""A fine-tuning run that stops and goes on is the run that did not stop, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch

from benchmarks.harness.run_checkpoints import RunCheckpoints
from benchmarks.text.config import TextSweep
from benchmarks.text.noise import NoiseTrack
from benchmarks.text.precision import Precision
from benchmarks.text.training import FineTuning
from tests.benchmarks.test_resume import equal, values
from tests.benchmarks.text.conftest import prepare

COSTS = {"examples_per_s", "step_s", "train_s", "wall_s", "checkpoint_s", "resumptions"}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "case",
    [
        {"rate": (None,)},
        {"rate": (0.5,), "method": ("rmm",), "sketch": ("importance_sampling",), "precision": "bf16"},
        {"rate": (0.5,), "method": ("rmm-lean",), "probe_every": 2, "track_memory": True},
    ],
    ids=["baseline", "importance sampling in bf16", "lean, watched"],
)
def test_a_run_goes_on_bit_for_bit(smoke: Callable[..., TextSweep], tmp_path, case):
    sweep = smoke(max_steps=8, epochs=2, eval_every_steps=3, batch_size=16, **case)
    data, _ = prepare(sweep)
    run = sweep.expand("sst2", "cpu")[0]
    whole = FineTuning(run, data)
    while whole.seen.step < whole.total:
        whole.run_step()
    after = torch.get_rng_state()
    first = FineTuning(run, data)
    for _ in range(4):  # of 6 in an epoch, and between two evaluations
        first.run_step()
    checkpoints = RunCheckpoints(tmp_path, run.key, every=1, resume=True)
    checkpoints.write(first.state_dict())
    torch.rand(17)
    second = FineTuning(run, data, checkpoints.read())
    while second.seen.step < second.total:
        second.run_step()
    assert torch.equal(torch.get_rng_state(), after)
    one, other = whole.result(), second.result()
    assert equal(
        values(whole.state_dict()) | {"parts": None, "generators": None},
        values(second.state_dict()) | {"parts": None, "generators": None},
    )
    assert {name: one.results[name] for name in one.results.keys() - COSTS} == {
        name: other.results[name] for name in other.results.keys() - COSTS
    }
    assert (one.curves, one.noise) == (other.curves, other.noise)
    assert (one.results["resumptions"], other.results["resumptions"]) == (0, 1)
    if case.get("track_memory"):
        assert one.memory["bytes"] == other.memory["bytes"] and one.memory["step"] == other.memory["step"]
        assert len(one.noise["step"]) == 4


def test_the_scale_of_the_loss_is_stored():
    one, other = Precision("fp16", torch.device("cpu")), Precision("fp16", torch.device("cpu"))
    one._scaler.scale(torch.ones(()))  # from here on it has a scale to be stored
    state = one.state_dict() | {"scale": 7.0}
    other.load_state_dict(state)
    assert other.state_dict()["scale"] == 7.0


def test_a_probe_that_is_off_has_no_state(smoke):
    run = smoke().expand("sst2", "cpu")[0]
    track = NoiseTrack(torch.nn.Linear(2, 2), run)
    track.load_state_dict(track.state_dict())
    assert track.record() is None and asdict(run)["probe_every"] is None
