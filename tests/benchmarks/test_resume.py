"""A run that stops and goes on is the run that did not stop, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_flatten

from benchmarks.harness.checkpoints import checkpoint_path
from benchmarks.harness.run_checkpoints import RunCheckpoints
from benchmarks.harness.train import train
from benchmarks.harness.training import Training

# Costs differ from run to run.
COSTS = {"epoch_s", "wall_s", "checkpoint_s", "peak_bytes", "resumptions"}
CASES: dict[str, dict[str, Any]] = {
    "baseline": {},
    "rmm": {"method": ("rmm",)},
    "rmm, importance sampling": {"method": ("rmm",), "sketch": ("importance_sampling",)},
    "rmm-lean, dropout, adaptive rate": {
        "method": ("rmm-lean",), "dropout": 0.4, "adaptive": ("rate",), "noise_target": (5.0,), "epochs": 23,
    },
    "rmm-lean, importance sampling, adaptive rate": {
        "method": ("rmm-lean",), "sketch": ("importance_sampling",), "adaptive": ("rate",), "noise_target": (5.0,),
        "epochs": 23, "norm_rate": (0.5,),
    },
    "rmm, adaptive learning rate": {"method": ("rmm",), "adaptive": ("lr",), "epochs": 23},
    "rmm-lean, anchored": {"method": ("rmm-lean",), "anchor": ("on",), "x0_codec": ("int4",)},
    "rmm-plan": {"method": ("rmm-plan",), "budget": ("90%",)},
    "rmm-uniform": {"method": ("rmm-uniform",), "budget": ("90%",)},
    "exact": {"method": ("exact",)},
    "checkpoint": {"method": ("checkpoint",)},
    "offload": {"method": ("offload",)},
}  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    """Whether two trees are the same, tensors bit for bit."""
    (first, spec), (second, other_spec) = tree_flatten(one), tree_flatten(other)
    return spec == other_spec and all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(first, second, strict=True)
    )


def values(state: dict[str, Any]) -> dict[str, Any]:
    """A run's state without its costs."""
    return state | {"parts": {name: part for name, part in state["parts"].items() if name != "costs"}}


def stopped_and_resumed(run, data, tmp_path, at: int) -> tuple[Training, Training]:
    """A run that never stopped, and one that was stored after epoch ``at`` and went on from the file."""
    whole = Training(run, data)
    for _ in range(run.epochs):
        whole.run_epoch()
    first = Training(run, data)
    for _ in range(at):
        first.run_epoch()
    RunCheckpoints(tmp_path, run.key, every=1).write(first.state_dict())
    torch.rand(17)  # whatever else the process draws
    second = Training(run, data, RunCheckpoints(tmp_path, run.key, resume=True).read())
    assert second.curves.epoch == at
    while second.curves.epoch < run.epochs:
        second.run_epoch()
    return whole, second


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_bit_for_bit(make_run: Callable[..., Any], tiny, tmp_path, case: str):
    run = make_run(**({"epochs": 7} | CASES[case]))
    whole, resumed = stopped_and_resumed(run, tiny, tmp_path, run.epochs // 2 + 1)
    generators = copy.deepcopy(resumed.state_dict()["generators"])
    assert equal(values(whole.state_dict()) | {"generators": None}, values(resumed.state_dict()) | {"generators": None})
    # The two share the process's generator, so what the first one left in it is seen from a run of its own.
    train(run, tiny, quiet=True)
    assert equal(generators["cpu"], torch.get_rng_state())
    one, other = asdict(whole.result()), asdict(resumed.result())
    assert {name: one[name] for name in one.keys() - COSTS} == {name: other[name] for name in one.keys() - COSTS}
    assert (one["resumptions"], other["resumptions"]) == (0, 1)


def test_what_importance_sampling_holds_is_stored(make_run, tiny, tmp_path):
    run = make_run(method=("rmm",), sketch=("importance_sampling",), epochs=6)
    whole, _ = stopped_and_resumed(run, tiny, tmp_path, 3)
    state = RunCheckpoints(tmp_path, run.key, resume=True).read()
    assert state["held"] and all("written" in held for held in state["held"].values())
    # Without it the run is another one: else this file would prove nothing.
    without = Training(run, tiny, state | {"held": {}})
    while without.curves.epoch < run.epochs:
        without.run_epoch()
    assert without.curves.loss != whole.curves.loss


@pytest.mark.parametrize("left_out", ["optimizer", "follower", "generators"])
def test_every_part_of_the_state_matters(make_run, tiny, tmp_path, left_out: str):
    adaptive = {"adaptive": ("rate",), "noise_target": (5.0,)}
    run = make_run(method=("rmm-lean",), dropout=0.4, epochs=23, **adaptive)
    whole, _ = stopped_and_resumed(run, tiny, tmp_path, 12)
    state = RunCheckpoints(tmp_path, run.key, resume=True).read()
    fresh = Training(run, tiny).state_dict()
    if left_out == "generators":
        state["generators"] = fresh["generators"]
    else:
        state["parts"][left_out] = fresh["parts"][left_out]
    changed = Training(run, tiny, state)
    while changed.curves.epoch < run.epochs:
        changed.run_epoch()
    assert changed.curves.loss != whole.curves.loss


def test_checkpoints_come_as_often_as_asked_and_leave_the_run_alone(make_run, tiny, tmp_path, monkeypatch):
    run, written = make_run(epochs=7), []
    monkeypatch.setattr(RunCheckpoints, "write", lambda self, state: written.append(state["parts"]["curves"]["epoch"]))
    expected = train(run, tiny, quiet=True)
    for every, epochs in ((1, [1, 2, 3, 4, 5, 6]), (3, [3, 6]), (7, []), (0, []), (None, [])):
        written.clear()
        result = train(run, tiny, quiet=True, checkpoints=RunCheckpoints(tmp_path, run.key, every=every))
        assert written == epochs and result.loss == expected.loss


def test_by_time_checkpoints_take_a_hundredth_of_it(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.harness.run_checkpoints.time.perf_counter", lambda: now[0])

    def write(path, key, state):
        now[0] += 2.0

    monkeypatch.setattr("benchmarks.harness.run_checkpoints.write_checkpoint", write)
    checkpoints = RunCheckpoints(tmp_path, "key")
    due = []
    for step in range(1, 100):
        now[0] += 10.0
        if checkpoints.is_due(step):
            due.append(step)
            checkpoints.write({})
    assert due == [6, 26, 46, 66, 86]  # after the first minute, then every 200 s


def test_costs_of_a_resumed_run_are_those_of_its_parts(make_run, tiny, tmp_path):
    run = make_run(epochs=5)
    checkpoints = RunCheckpoints(tmp_path, run.key, every=2, resume=True)
    train(run, tiny, quiet=True, checkpoints=checkpoints)
    state = checkpoints.read()
    assert checkpoint_path(tmp_path, run.key).exists() and state["parts"]["curves"]["epoch"] == 4
    state["parts"]["costs"] |= {"past_s": 1000.0, "past_peak_bytes": 2**50, "checkpoint_s": [200.0]}
    checkpoints.write(state)
    result = train(run, tiny, quiet=True, checkpoints=checkpoints)
    assert result.resumptions == 1 and 800 < result.wall_s < 900
    assert result.peak_bytes == 2**50 and result.checkpoint_s == 200.0
