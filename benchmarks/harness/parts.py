"""Commands that run one after the other, each within a time of its own; a summary tells of each how it ended."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.files import write_text

SUMMARY = "summary.md"


@dataclass(frozen=True)
class Part:
    """A command.

    Attributes:
        name: Of its files, and in the summary.
        command: Program and arguments.
        budget_s: It is killed, with all that it started, after so many seconds.
        files: What it writes besides what it prints, relative to the results folder.
        needs: Names of earlier parts that have to pass first, where they are run at all.
        quoted: Whether the summary quotes the last line that it prints, as that of a test run.
    """

    name: str
    command: Sequence[str]
    budget_s: float
    files: Sequence[str] = ()
    needs: Sequence[str] = ()
    quoted: bool = False


@dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
        part: Which.
        result: In words.
        passed: Whether it ended in time, with exit code 0.
        seconds: That it took.
        quote: The last line that it printed; empty unless it is to be quoted.
    """

    part: Part
    result: str
    passed: bool
    seconds: float
    quote: str = ""


def run_parts(
    parts: Sequence[Part],
    out: Path,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    limit_s: float,
    report: Callable[[Sequence[Outcome]], None],
) -> list[Outcome]:
    """Run all parts; one that fails or takes too long costs no other one its turn.

    What a part prints goes to ``NAME.txt``, its standard error to ``NAME.log``.

    Args:
        parts: In this order.
        out: Folder of the results.
        cwd: Folder to run them in.
        environment: Their environment variables.
        limit_s: Seconds for all of them together; a part that the others leave no time is not started.
        report: Called after every part with what is known so far.

    Returns:
        The outcomes, in the order of the parts.
    """
    end, outcomes = time.monotonic() + limit_s, list[Outcome]()
    for part in parts:
        failed = [other.part.name for other in outcomes if other.part.name in part.needs and not other.passed]
        left = min(part.budget_s, end - time.monotonic())
        if failed:
            outcomes.append(Outcome(part, f"not started, {failed[0]} did not pass", False, 0.0))
        elif left <= 0:
            outcomes.append(Outcome(part, "not started, no time was left", False, 0.0))
        else:
            outcomes.append(_run(part, out, cwd, environment, left))
        report(outcomes)
    return outcomes


def _run(part: Part, out: Path, cwd: Path, environment: Mapping[str, str], budget_s: float) -> Outcome:
    start = time.monotonic()
    printed = out / f"{part.name}.txt"
    with open(printed, "wb") as stdout, open(out / f"{part.name}.log", "wb") as stderr:
        try:
            process = subprocess.Popen(
                part.command, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Outcome(part, f"failed, {error.strerror}", False, time.monotonic() - start)
        try:
            code = process.wait(budget_s)
            result = "passed" if code == 0 else f"failed, exit code {code}"
        except subprocess.TimeoutExpired:
            code, result = None, f"timed out after {budget_s:.0f} s"
        finally:
            _kill_group(process)  # also what a part left running: it would take time from the next one
    lines = printed.read_text(errors="replace").split("\n") if part.quoted else []
    quote = next((line.strip("= ") for line in reversed(lines) if line.strip("= ")), "")
    return Outcome(part, result, code == 0, time.monotonic() - start, quote)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def write_summary(out: Path, title: str, notes: Sequence[str], outcomes: Sequence[Outcome]) -> str:
    """Write ``summary.md``: a row for every part, then its command.

    Returns:
        The text.
    """
    rows = [
        f"| {outcome.part.name} | {outcome.result} | {outcome.seconds:.1f} | {_files(out, outcome.part)} |"
        for outcome in outcomes
    ]
    passed = sum(outcome.passed for outcome in outcomes)
    quotes = [f"- {outcome.part.name}: {outcome.quote}" for outcome in outcomes if outcome.quote]
    commands = [f"- {outcome.part.name}: `{shlex.join(outcome.part.command)}`" for outcome in outcomes]
    lines = [
        f"# {title}", "", *(f"- {note}" for note in notes), "", f"{passed} of {len(outcomes)} parts passed.", "",
        "| part | outcome | seconds | files |", "|---|---|---|---|", *rows, "",
        *(["Tests:", "", *quotes, ""] if quotes else []), "Commands:", "", *commands, "",
    ]  # fmt: skip
    text = "\n".join(lines)
    write_text(out / SUMMARY, text)
    return text


def _files(out: Path, part: Part) -> str:
    """What there is of the files of a part, in words; those that are empty are left out."""
    own = [f"{part.name}.txt", f"{part.name}.log", *part.files]
    there = [name for name in own if (out / name).is_dir() or ((out / name).exists() and (out / name).stat().st_size)]
    return ", ".join(f"`{name}`" for name in there) or "none"
