"""What the commands that time layers and kernels have in common: flags, shapes, and the JSON file."""

from __future__ import annotations

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.files import write_text
from benchmarks.micro.timing import spread


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--backend``, ``--repetitions``, ``--threads``, ``--device``, ``--out`` and what concerns the tests."""
    parser.add_argument("--backend", default="auto", help="implementation, as in RMMConfig")
    parser.add_argument("--repetitions", type=int, default=9, help="timed rounds")
    parser.add_argument("--threads", type=int, help="CPU threads; unset: PyTorch's default")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers, which scripts/compare_bench.py compares")
    parser.add_argument(
        "--no-gate", action="store_true", help="do not run the tests first; the table is marked as unverified"
    )
    parser.add_argument(
        "--tested-in", metavar="RUN", help="do not run the tests first: those of the kernels passed in RUN"
    )


def prepare(given: argparse.Namespace) -> None:
    """Check the number of rounds and set the threads.

    Raises:
        BenchmarkError: When there is no round.
    """
    if given.repetitions < 1:
        raise BenchmarkError(f"'repetitions' must be at least 1 (got {given.repetitions}). Choose more.")
    if given.threads is not None:
        torch.set_num_threads(given.threads)


def parse_shape(text: str, form: str) -> tuple[int, ...]:
    """Read a shape such as ``16384x768`` of the form ``ROWSxCOLUMNS``.

    Raises:
        BenchmarkError: When it is something else.
    """
    parts = text.split("x")
    if len(parts) != len(form.split("x")) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise BenchmarkError(f"'shape' must be {form} (got '{text}'). Write whole numbers with an x between them.")
    return tuple(map(int, parts))


def write(given: argparse.Namespace, environment: dict[str, Any], rows: list[dict[str, Any]], **more: Any) -> None:
    """Write date, settings, environment and rows where ``--out`` names a file, small enough to be kept with the code.

    A row is a line.  Of a list of seconds the median and the quantiles are written; numbers have six digits.

    Args:
        given: Settings are all but the paths of what is written.
        environment: What ``environment.describe`` returned.
        rows: Records with ``shape``, ``layer``, ``ratio`` and ``seconds``.
        **more: Further lists of records, by name.
    """
    if not given.out:
        return
    head = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "settings": {name: value for name, value in vars(given).items() if not isinstance(value, Path)},
        "environment": environment,
    }
    lists = {"rows": rows, **more}
    parts = [f'"{name}": {json.dumps(value)}' for name, value in head.items()]
    for name, records in lists.items():
        lines = ",\n".join(f"  {json.dumps(_shortened(record))}" for record in records)
        parts.append(f'"{name}": [\n{lines}\n ]')
    write_text(given.out, "{\n " + ",\n ".join(parts) + "\n}\n")


def _shortened(record: dict[str, Any]) -> dict[str, Any]:
    """The record with a spread in the place of single seconds, and with numbers of six digits."""
    short = dict(record)
    if isinstance(record.get("seconds"), list):
        short["seconds"] = spread(record["seconds"])._asdict()
    return {name: _rounded(value) for name, value in short.items()}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
