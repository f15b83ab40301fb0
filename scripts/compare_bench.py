#!/usr/bin/env python3
"""Compare two JSON files of benchmarks/micro/linear.py or kernels.py, and flag what became slower.

    python benchmarks/micro/linear.py --out before.json      # then change the code, and
    python benchmarks/micro/linear.py --out after.json
    python scripts/compare_bench.py before.json after.json

Compares the ratios to the peer that took turns with each row, so that the machine's own changes matter little. A row is
flagged where its median grew by more than --tolerance and its quantiles (20 %, 80 %) lie above the old ones.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.script import guarded, parser_of

SLOWER = "SLOWER"
# Of the environment, and of the command where it has them.
_ENVIRONMENT, _COMMAND = ("device", "threads"), ("backend", "dtype", "rate")


def read(path: Path) -> dict[str, Any]:
    """The contents of one file.

    Raises:
        BenchmarkError: When it cannot be read, or something else is in it.
    """
    try:
        found = json.loads(path.read_text())
        for row in found["rows"]:
            _ = row["shape"], row["layer"], float(row["ratio"]["median"])
        _ = [found["environment"][name] for name in _ENVIRONMENT]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(
            f"'{path}' could not be read ({error!r}). Give a file that a benchmark's --out wrote."
        ) from error
    return found


def compare(before: dict[str, Any], after: dict[str, Any], tolerance: float) -> list[dict[str, Any]]:
    """Rows that both have, in the order of ``after``, with the change and a verdict."""
    old = {(row["shape"], row["layer"]): row["ratio"] for row in before["rows"]}
    compared = []
    for row in after["rows"]:
        key = row["shape"], row["layer"]
        if key not in old:
            continue
        change = row["ratio"]["median"] / old[key]["median"] - 1
        apart = row["ratio"]["low"] > old[key]["high"]
        verdict = "" if change <= tolerance else SLOWER if apart else "within the spread"
        compared.append(
            {
                "shape": key[0],
                "layer": key[1],
                "before": old[key],
                "after": row["ratio"],
                "change": change,
                "verdict": verdict,
            }
        )
    return compared


def main(argv: Sequence[str] | None = None) -> int:
    """Print the comparison.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, 1 where a row became slower, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("before", type=Path, help="JSON file of the code as it was")
    parser.add_argument("after", type=Path, help="JSON file of the code as it is")
    parser.add_argument("--tolerance", type=float, default=0.1, help="growth of a ratio that is let pass")
    parser.add_argument("--anyway", action="store_true", help="compare files of other devices, threads or settings")
    return guarded(lambda: _run(parser.parse_args(argv)), "interrupted")


def _run(given: argparse.Namespace) -> int:
    before, after = read(given.before), read(given.after)
    for part, names in (("environment", _ENVIRONMENT), ("settings", _COMMAND)):
        for name in names:
            values = before.get(part, {}).get(name), after.get(part, {}).get(name)
            if values[0] != values[1] and not given.anyway:
                raise BenchmarkError(f"The files differ in {name} ({values[0]} and {values[1]}). Use --anyway.")
    compared = compare(before, after, given.tolerance)
    if not compared:
        raise BenchmarkError("The files have no row in common. Run both with the same --shape and layers.")
    rows = [
        [
            row["shape"],
            row["layer"],
            *(
                f"{ratio['median']:.2f} ({ratio['low']:.2f} - {ratio['high']:.2f})"
                for ratio in (row["before"], row["after"])
            ),
            f"{row['change']:+.0%}",
            row["verdict"],
        ]
        for row in compared
    ]
    headers = ["shape", "layer", "ratio before", "ratio after", "change", ""]
    print(require("tabulate").tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    slower = [row for row in compared if row["verdict"] == SLOWER]
    gone = len(before["rows"]) - len(compared)
    print(f"\n{len(compared)} rows compared, {len(slower)} slower by more than {given.tolerance:.0%}, {gone} gone.")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
