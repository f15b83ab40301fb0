"""Commands within their time: what failed or took too long is told of, and costs no other part its turn."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from benchmarks.harness.parts import SUMMARY, Part, run_parts, write_summary


def python(name: str, code: str, budget_s: float = 60.0, **more: object) -> Part:
    return Part(name, [sys.executable, "-c", code], budget_s, **more)


def run(parts: list[Part], out: Path, limit_s: float = 60.0):
    seen: list[int] = []
    outcomes = run_parts(
        parts, out, cwd=out, environment=os.environ, limit_s=limit_s, report=lambda known: seen.append(len(known))
    )
    assert seen == list(range(1, len(parts) + 1))
    return outcomes


def test_every_part_has_its_turn_and_its_files(tmp_path):
    parts = [
        python("good", "print('table'); open('good.json', 'w').write('{}')", files=["good.json"]),
        python("bad", "import sys; print('why', file=sys.stderr); sys.exit(3)"),
        python("long", "import time; print('begun', flush=True); time.sleep(60)", budget_s=1.0),
        Part("absent", ["no-such-program"], 60.0),
        python("tests", "print('....'); print('== 4 passed in 1.00s ==')", quoted=True),
    ]
    outcomes = run(parts, tmp_path)
    assert [outcome.passed for outcome in outcomes] == [True, False, False, False, True]
    text = write_summary(tmp_path, "Check", ["a note"], outcomes)
    assert text == (tmp_path / SUMMARY).read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    assert [(row[0], row[1], row[3]) for row in rows[1:]] == [
        ("good", "passed", "`good.txt`, `good.json`"),
        ("bad", "failed, exit code 3", "`bad.log`"),
        ("long", "timed out after 1 s", "`long.txt`"),
        ("absent", "failed, No such file or directory", "none"),
        ("tests", "passed", "`tests.txt`"),
    ]
    assert all(float(row[2]) >= 0 for row in rows[1:])
    assert text.startswith("# Check\n\n- a note\n\n2 of 5 parts passed.\n")
    assert "- tests: 4 passed in 1.00s\n" in text and f"- bad: `{sys.executable} -c" in text
    assert (tmp_path / "bad.log").read_text() == "why\n" and (tmp_path / "long.txt").read_text() == "begun\n"


def test_what_needs_another_part_does_not_start_without_it(tmp_path):
    parts = [
        python("tests", "raise SystemExit(1)"),
        python("times", "open('times.json', 'w')", needs=["tests"]),
        python("table", "pass", needs=["elsewhere"]),
    ]
    outcomes = run(parts, tmp_path)
    assert [outcome.result for outcome in outcomes] == [
        "failed, exit code 1", "not started, tests did not pass", "passed"
    ]  # fmt: skip
    assert not (tmp_path / "times.json").exists()


def test_what_a_part_started_ends_with_it(tmp_path):
    """A test run starts workers, which would go on using the GPU."""
    code = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)']); "
        "print(child.pid, flush=True); time.sleep(120)"
    )
    (outcome,) = run([python("parent", code, budget_s=3.0)], tmp_path)
    assert not outcome.passed and outcome.seconds < 30
    child = int((tmp_path / "parent.txt").read_text())
    for _ in range(50):
        status = Path(f"/proc/{child}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the child lives on")


def test_all_parts_together_have_a_limit(tmp_path):
    sleep = "import time; time.sleep(60)"
    outcomes = run([python("first", sleep), python("second", "print('never')")], tmp_path, limit_s=1.0)
    assert [outcome.result for outcome in outcomes] == ["timed out after 1 s", "not started, no time was left"]
    assert not (tmp_path / "second.txt").exists()
