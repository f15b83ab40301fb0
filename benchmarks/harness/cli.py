"""The command line of a `Sweep`: one flag per field, with the field's own help and default."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.harness.config import DIGITS, SMOKE, Sweep, resolve
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.options import add_options, words


def _flags(preset: dict[str, Any]) -> str:
    return " ".join(f"--{name} {words(value)}" for name, value in preset.items())


_EPILOG = f"""
Flags that are not given take the defaults above, the published protocol for GCN2 on ogbn-arxiv, except that
  --dataset digits starts from {_flags(DIGITS)}
  --smoke          starts from {_flags(SMOKE)}
In --out: records.jsonl (one line per finished run), table.md, accuracy.png (against epoch), frontier.png (accuracy and
time against saved bytes).
Exit codes: 0 done, 2 something to put right (said on standard error), 130 interrupted (finished runs are
kept; --resume continues).
"""


def build_parser(description: str) -> argparse.ArgumentParser:
    """A parser whose namespace holds only what was given, so that presets can fill the rest.

    Args:
        description: First paragraph of ``--help``.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(
        description=description,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser, Sweep)
    return parser


def parse(argv: Sequence[str] | None, description: str) -> Sweep:
    """Read a command line.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.
        description: First paragraph of ``--help``.

    Returns:
        The resolved configuration.

    Raises:
        BenchmarkError: When a value is out of its range.
    """
    given = vars(build_parser(description).parse_args(argv))
    try:
        return resolve({name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    except ValueError as error:
        raise BenchmarkError(str(error)) from error
