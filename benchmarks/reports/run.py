"""The command line of a report that is made from runs of the harness: run what is missing, then write the report."""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.jsonl import read_lines
from benchmarks.harness.script import guarded
from benchmarks.reports.page import Page, write
from benchmarks.reports.rows import Record

Flags = Mapping[str, Sequence[str]]

INTERRUPTED = "Interrupted; the same command goes on with what is missing."
SMOKE_NOTE = "With --smoke everything is of tiny size and {}: only that the report can be made is shown."


@dataclass(frozen=True)
class Harness:
    """A command that trains and records.

    Attributes:
        module: Has ``main(argv)``; flags of a report that it does not know go there.
        records: Module with the ``SCHEMA`` of its records.
        smoke_data: What it trains on with ``--smoke``, in words.
    """

    module: str
    records: str
    smoke_data: str

    @property
    def script(self) -> str:
        """Its file."""
        return self.module.replace(".", "/") + ".py"


GLUE = Harness("benchmarks.glue", "benchmarks.text.records", "texts are made up")
ARXIV = Harness("benchmarks.ogbn_arxiv", "benchmarks.harness.records", "the data are scikit-learn's digits")


@dataclass(frozen=True)
class Report:
    """One report.

    Attributes:
        name: Of its files, its script ``scripts/reproduce_NAME.sh`` and, unless ``folder`` is given, its folder.
        summary: First line of ``--help``.
        flags: The paper's setting, as flags of the harness; flags on the command line replace them.
        smoke: Flags that replace them in turn with ``--smoke``.
        page: Makes the report from the runs.
        folder: Folder of the runs under ``runs/reproduce``; reports with the same settings share one.
        harness: What trains.
    """

    name: str
    summary: str
    flags: Flags
    smoke: Flags
    page: Callable[[Sequence[Record]], Page]
    folder: str | None = None
    harness: Harness = GLUE


def main(report: Report, argv: Sequence[str] | None = None) -> int:
    """Run the harness and write the report.

    Args:
        report: Which.
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, 2 for something the user can put right, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    given, rest = _parser(report).parse_known_args(arguments)

    def work() -> int:
        for module in ("tabulate", "matplotlib"):
            require(module)  # needed only at the end, but better missed now than after the last run
        out = given.out or default_out(report.folder or report.name, smoke=given.smoke)
        if given.report_only and rest:
            raise BenchmarkError(f"'report-only' must come alone (got {shlex.join(rest)} besides). Leave that out.")
        code = 0 if given.report_only else _run(report, out, rest, smoke=given.smoke)
        if not code:
            page = report.page(read_runs(out, report.harness))
            finish(page, out, report.name, arguments, report.harness)
        return code

    return guarded(work, INTERRUPTED)


def default_out(folder: str, *, smoke: bool) -> Path:
    """Where runs and reports go."""
    return Path("runs/reproduce", folder + ("-smoke" if smoke else ""))


def finish(page: Page, out: Path, name: str, arguments: Sequence[str], harness: Harness = GLUE) -> None:
    """Write the report, with the command that made it, and show it."""
    command = shlex.join(["bash", f"scripts/reproduce_{name}.sh", *arguments])
    smoke = SMOKE_NOTE.format(harness.smoke_data) if "--smoke" in arguments else None
    notes = [*page.notes, smoke, f"Command: `{command}`"]
    text = write(replace(page, notes=notes), out, name)
    print(f"{text}\nWrote {name}.md and {name}.png in {out}")


def read_runs(out: Path, harness: Harness = GLUE) -> list[Record]:
    """The finished runs in a folder.

    Raises:
        BenchmarkError: When there are none, or they are not this harness's.
    """
    records = read_lines(out, importlib.import_module(harness.records).SCHEMA)
    if not records:
        raise BenchmarkError(f"'out' must hold finished runs (got none in '{out}'). Leave out --report-only.")
    return records


def harness_flags(report: Report, rest: Sequence[str], *, smoke: bool) -> list[str]:
    """Flags for the harness: the report's own, except those that ``rest`` gives, then ``rest``."""
    flags = {**report.flags, **(report.smoke if smoke else {})}
    given = {word.partition("=")[0] for word in rest if word.startswith("--")}
    own = [word for name, values in flags.items() if f"--{name}" not in given for word in (f"--{name}", *values)]
    return [*own, *(["--smoke"] if smoke else []), *rest]


def _run(report: Report, out: Path, rest: Sequence[str], *, smoke: bool) -> int:
    harness = importlib.import_module(report.harness.module)
    flags = harness_flags(report, rest, smoke=smoke)
    with redirect_stdout(sys.stderr):  # where the harness shows its own tables: standard output has this report alone
        return harness.main([*flags, "--out", str(out), "--resume"])


def _parser(report: Report) -> argparse.ArgumentParser:
    preset = shlex.join(harness_flags(report, [], smoke=False))
    parser = argparse.ArgumentParser(
        prog=f"scripts/reproduce_{report.name}.sh",
        description=report.summary,
        epilog=f"Anything else goes to {report.harness.script} (see its --help), whose flags start from: {preset}",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", type=Path, help="folder for runs and report; runs recorded there are not repeated (default: "
        f"runs/reproduce/{report.folder or report.name})",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="everything at tiny size: seconds, no data, no network")
    parser.add_argument("--report-only", action="store_true", help="train nothing, report on the runs in --out")
    return parser
