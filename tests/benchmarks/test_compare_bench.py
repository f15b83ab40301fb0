"""The comparison of what two runs of a benchmark wrote, and what may be kept of runs in the repository."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.micro import linear

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "compare_bench.py"


@pytest.fixture(scope="module")
def compare_bench():
    spec = importlib.util.spec_from_file_location("compare_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(path: Path, medians: dict[str, float], device: str = "a CPU", spread: float = 0.02, **more: object) -> str:
    """A made file; returns its path."""
    rows = [
        {"shape": "9x9", "layer": name, "ratio": {"low": value - spread, "median": value, "high": value + spread}}
        for name, value in medians.items()
    ]
    path.write_text(json.dumps({"environment": {"device": device, "threads": 2}, "rows": rows} | more))
    return str(path)


def test_a_ratio_that_got_worse_is_flagged(compare_bench, tmp_path, capsys):
    before = write(tmp_path / "before.json", {"same": 1.0, "slower": 1.0, "faster": 1.0, "gone": 1.0})
    after = write(tmp_path / "after.json", {"same": 1.09, "slower": 1.12, "faster": 0.5, "new": 1.0})
    assert compare_bench.main([before, after]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines if "SLOWER" in line] == ["slower"]
    assert lines[-1] == "3 rows compared, 1 slower by more than 10%, 0 more within the spread, 1 gone."
    assert "gone: 9x9, gone" in lines
    assert compare_bench.main([before, after, "--tolerance", "0.2"]) == 0


def test_what_lies_within_the_spread_is_said_and_not_flagged(compare_bench, tmp_path, capsys):
    before = write(tmp_path / "before.json", {"noisy": 1.0}, spread=0.3)
    after = write(tmp_path / "after.json", {"noisy": 1.2}, spread=0.3)
    assert compare_bench.main([before, after]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("| within the spread |") for line in lines)
    assert lines[-1] == "1 rows compared, 0 slower by more than 10%, 1 more within the spread, 0 gone."
    assert compare_bench.main([before, after, "--strict"]) == 1
    assert "SLOWER" in capsys.readouterr().out


def test_of_several_runs_the_middle_one_counts_row_by_row(compare_bench, tmp_path, capsys):
    before = write(tmp_path / "before.json", {"disturbed": 1.0, "slower": 1.0})
    runs = [(1.01, 1.3), (5.0, 1.2), (1.0, 1.0)]
    after = [
        write(tmp_path / f"after-{number}.json", {"disturbed": disturbed, "slower": slower})
        for number, (disturbed, slower) in enumerate(runs)
    ]
    assert compare_bench.main([before, *after]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if "9x9" in line]
    assert "1.01 (0.99 - 1.03)" in lines[0] and "SLOWER" not in lines[0]
    assert "1.20 (1.18 - 1.22)" in lines[1] and "+20%" in lines[1] and "SLOWER" in lines[1]
    assert compare_bench.main([before, after[1], after[2]]) == 0  # of two, the better


def test_other_devices_threads_and_settings_are_refused_or_said(compare_bench, tmp_path, capsys):
    alike = {"settings": {"backend": "auto", "rate": [0.5, 0.1]}}
    before = write(tmp_path / "before.json", {"row": 1.0}, **alike)
    where = {"device": "another CPU", "threads": 4}
    after = write(tmp_path / "after.json", {"row": 1.5}, environment=where, settings={"backend": "reference"})
    assert compare_bench.main([before, before, after]) == 2
    unlike = "device (a CPU before, another CPU after); threads (2 before, 4 after); backend (auto before, reference"
    shown = capsys.readouterr()
    assert "must be made alike" in shown.err and unlike in shown.err and "9x9" not in shown.out
    assert compare_bench.main([before, after, "--anyway"]) == 1
    assert f"CAUTION: {after} differs in {unlike}" in capsys.readouterr().out


def test_fewer_rates_than_before_are_comparable(compare_bench, tmp_path):
    before = write(tmp_path / "before.json", {"0.5": 1.0, "0.1": 1.0}, settings={"rate": [0.5, 0.1]})
    after = write(tmp_path / "after.json", {"0.1": 1.0}, settings={"rate": [0.1]})
    assert compare_bench.main([before, after]) == 0


def test_says_where_the_files_come_from(compare_bench, tmp_path, capsys):
    where = {"device": "a CPU", "threads": 2, "git_sha": 40 * "a", "git_dirty": True, "packages": {"torch": "2.13.0"}}
    before = write(tmp_path / "before.json", {"row": 1.0})
    after = write(
        tmp_path / "after.json", {"row": 1.0}, environment=where, settings={"no_gate": True}, date="2026-01-02"
    )
    assert compare_bench.main([before, after]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{before}: no date, commit unknown, a CPU, 2 threads, torch unknown"
    commit = f"commit {12 * 'a'} with changes"
    assert lines[1] == f"{after}: 2026-01-02, {commit}, a CPU, 2 threads, torch 2.13.0, UNVERIFIED"


def test_what_a_benchmark_wrote_is_no_slower_than_itself(compare_bench, tmp_path):
    out = str(tmp_path / "linear.json")
    small = ["--shape", "200x8x4", "--rate", "0.1", "--repetitions", "2", "--device", "cpu"]
    assert linear.main([*small, "--no-gate", "--out", out]) == 0
    assert subprocess.run([sys.executable, SCRIPT, out, out], capture_output=True, cwd=tmp_path).returncode == 0


def test_kept_results_can_be_compared_and_passed_their_tests(compare_bench):
    folder = ROOT / "benchmarks" / "results"
    listed = (folder / "README.md").read_text()
    for path in folder.glob("*.json"):
        found = compare_bench.read(path)
        assert f"`{path.name}`" in listed and path.stat().st_size < 2**16
        assert found["date"] and found["environment"]["git_sha"] and not found["settings"]["no_gate"]


def test_what_cannot_be_compared_exits_2(compare_bench, tmp_path, capsys):
    before = write(tmp_path / "before.json", {"row": 1.0})
    elsewhere = write(tmp_path / "elsewhere.json", {"row": 1.0}, device="another CPU")
    other = write(tmp_path / "other.json", {"another": 1.0})
    nothing = write(tmp_path / "nothing.json", {"row": 0.0}, spread=0.0)
    (tmp_path / "damaged.json").write_text("{}")
    for after, message in [
        (elsewhere, "they differ in device"),
        (other, "no row in common"),
        (str(tmp_path / "damaged.json"), "could not be read"),
        (str(tmp_path / "missing.json"), "could not be read"),
        (nothing, "could not be read"),
    ]:
        assert compare_bench.main([before, after]) == 2
        assert message in capsys.readouterr().err
    assert compare_bench.main([before, elsewhere, "--anyway"]) == 0
    assert compare_bench.main([before, before, "--tolerance", "-0.1"]) == 2
    assert "'tolerance' must be at least 0 (got -0.1)" in capsys.readouterr().err
