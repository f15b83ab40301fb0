"""The long run: its verdicts notice what grows, drifts or is left, and a run has none of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.micro.long_run import main
from benchmarks.micro.long_run_verdicts import growth, judge
from tests.nn.recording import one_thread

STEPS = 400
RNG = np.random.default_rng(0)


def notes(**changes):
    """Of a run without a fault: resident memory that jitters and jumps once, noise as a gamma distribution has it."""
    steps = list(range(4, STEPS + 1, 4))
    resident = 5e8 + 2e5 * RNG.random(len(steps)) + 5e6 * (np.arange(len(steps)) > 70)
    points = [{"resident_bytes": float(value), "tensors": 60, "tensor_bytes": 1000} for value in resident]
    ratios = {"weight": list(RNG.gamma(20, 1 / 20, STEPS))}
    return {"steps": steps, "memory": points, "storages_left": [0] * len(steps), "ratios": ratios} | changes


def failed(run):
    return [question for question, passed in judge(run, 5)["passed"].items() if passed is False]


def test_a_run_without_a_fault_passes():
    assert failed(notes()) == []


def test_memory_that_grows_is_noticed():
    run = notes()
    for step, point in zip(run["steps"], run["memory"], strict=True):
        point["resident_bytes"] += 8192.0 * step
    assert failed(run) == ["resident memory"]
    found = growth(run["steps"], [point["resident_bytes"] for point in run["memory"]])
    assert 2**20 < found["low"] < found["growth"] < found["high"]


@pytest.mark.parametrize("name", ["tensors", "tensor_bytes"])
def test_one_more_tensor_is_noticed(name):
    run = notes()
    run["memory"][-1][name] += 1
    assert failed(run) == [name.replace("_", " ")]


def test_a_storage_that_is_left_is_noticed():
    assert failed(notes(storages_left=[0, 0, 1])) == ["saved storages"]


def test_noise_that_is_off_is_noticed():
    run = notes()
    run["ratios"]["other"] = [1.2 * ratio if 160 <= step < 240 else ratio
                              for step, ratio in enumerate(run["ratios"]["weight"])]  # fmt: skip
    assert failed(run) == ["noise in every window"]


def test_noise_that_drifts_is_noticed():
    run = notes()
    drifting = [ratio * (0.91 + 0.18 * step / STEPS) for step, ratio in enumerate(run["ratios"]["weight"])]
    run["ratios"]["weight"] = drifting
    assert "slope of the noise" in failed(run)


def test_unknown_resident_memory_is_no_fault():
    run = notes()
    for point in run["memory"]:
        point["resident_bytes"] = None
    assert failed(run) == [] and judge(run, 5)["passed"]["resident memory"] is None


def check_run(tmp_path, steps, capsys):
    out, plot = tmp_path / "out" / "run.json", tmp_path / "run.png"
    with one_thread():
        assert main(["--steps", str(steps), "--windows", "5", "--out", str(out), "--plot", str(plot)]) == 0
    assert "Nothing grows, drifts or is left behind." in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert written["verdicts"].keys() == written["runs"].keys() == {"anchored", "sampled"}
    for run in written["runs"].values():
        assert len(run["ratios"]) == 5 and {len(ratios) for ratios in run["ratios"].values()} == {steps}
        assert run["steps"][-1] == steps
    assert plot.stat().st_size > 10_000


def test_150_steps(tmp_path, capsys):
    check_run(tmp_path, 150, capsys)


@pytest.mark.slow
def test_2000_steps(tmp_path, capsys):
    check_run(tmp_path, 2000, capsys)


@pytest.mark.parametrize("wrong", [["--steps", "50", "--windows", "10"], ["--windows", "0"]])
def test_too_few_steps(wrong, capsys):
    assert main(wrong) == 2
    assert "'steps' must be at least ten for each of the windows" in capsys.readouterr().err


def test_name_of_the_picture(capsys):
    assert main(["--plot", "run.doc"]) == 2
    assert "'plot' must end in" in capsys.readouterr().err
