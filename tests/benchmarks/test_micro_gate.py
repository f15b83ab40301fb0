"""The gate before benchmarks, and the times they take."""

import time

import pytest
import torch

from benchmarks.harness.errors import BenchmarkError
from benchmarks.micro import gate, timing


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(gate, "ROOT", tmp_path)
    monkeypatch.setattr(gate, "_PASSED", tmp_path / "cache" / "passed")
    (tmp_path / "rmm_gnn").mkdir()
    (tmp_path / "rmm_gnn" / "code.py").write_text("value = 1\n")
    (tmp_path / "tests").mkdir()
    return tmp_path


def write_test(checkout, body: str) -> list[str]:
    (checkout / "tests" / "test_it.py").write_text(f"def test_it():\n    {body}\n")
    return ["tests/test_it.py"]


def test_passing_tests_run_once_for_the_same_sources(checkout):
    tests = write_test(checkout, "open('ran', 'a').write('x')")
    for _ in range(2):
        assert gate.check(tests, skip=False) is None
    assert (checkout / "ran").read_text() == "x"
    (checkout / "rmm_gnn" / "code.py").write_text("value = 2\n")
    assert gate.check(tests, skip=False) is None
    assert (checkout / "ran").read_text() == "xx"


def test_failing_tests_stop_the_benchmark(checkout):
    tests = write_test(checkout, "assert 1 == 2")
    for _ in range(2):
        with pytest.raises(BenchmarkError, match=r"assert 1 == 2(.|\n)*do not pass"):
            gate.check(tests, skip=False)
    assert gate.check(tests, skip=True) == gate.UNVERIFIED


def test_missing_tests_are_not_passed(checkout):
    with pytest.raises(BenchmarkError, match=r"'tests/test_other.py' is not there"):
        gate.check(["tests/test_other.py"], skip=False)


def test_interleaved_counts_every_round_but_the_first():
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1

    seconds = timing.interleaved(
        {name: lambda name=name: call(name) for name in calls}, 3, torch.device("cpu"), repeat=2
    )
    assert calls == {"a": 8, "b": 8} and [len(values) for values in seconds.values()] == [3, 3]


def test_interleaved_divides_by_the_runs_of_each_call():
    calls = {"a": 0, "b": 0}

    def call(name):
        calls[name] += 1

    given = {name: lambda name=name: call(name) for name in calls}
    timing.interleaved(given, 1, torch.device("cpu"), repeat={"a": 3, "b": 1})
    assert calls == {"a": 6, "b": 2}


def test_short_calls_are_repeated_and_long_ones_are_not():
    calls = {"short": lambda: None, "long": lambda: time.sleep(1.5 * timing.SHORT_S)}
    found = timing.repeats(calls, torch.device("cpu"))
    assert found["short"] > 10 and found["long"] == 1


def test_ratios_are_those_of_a_round():
    # Every round is as slow for both: the ratio does not see it.
    assert timing.ratios([2.0, 20.0, 4.0], [1.0, 10.0, 2.0]) == (2.0, 2.0, 2.0)
    assert timing.spread([3.0]) == (3.0, 3.0, 3.0)
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == (2.0, 3.5, 5.0)
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).format(1, 10) == "35.0 (20.0 - 50.0)"


def test_tests_that_passed_in_a_larger_run_are_named():
    assert gate.check(["tests/absent"], skip=False, passed_in="the nightly run") == (
        "Of the tests, those passed before these numbers: the nightly run."
    )


def test_another_device_is_another_state(monkeypatch):
    before = gate._fingerprint(["tests/kernels"])
    monkeypatch.setenv("TRITON_INTERPRET", "another")
    assert gate._fingerprint(["tests/kernels"]) != before
    monkeypatch.undo()
    assert gate._fingerprint(["tests/kernels"]) == before
