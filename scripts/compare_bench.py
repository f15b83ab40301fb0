#!/usr/bin/env python3
"""Compare JSON files of benchmarks/micro/linear.py, kernels.py or scaling.py, and flag what became slower.

    python benchmarks/micro/linear.py --out now.json
    python scripts/compare_bench.py benchmarks/results/linear-cpu.json now.json
    python scripts/compare_bench.py before.json after-1.json after-2.json after-3.json

Compares the ratios to the peer that took turns with each row, so that the machine's own changes matter little. A row is
flagged where its median grew by more than --tolerance and its quantiles (20 %, 80 %) lie above the old ones; with
--strict also where they do not. Of several files after the first, the run with the middle median counts row by row (of
two, the better), so that one disturbed run flags nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.script import guarded, parser_of

SLOWER = "SLOWER"
WITHIN = "within the spread"
# What must be alike: of the environment, and of the command where it has them. Shapes and rates name the rows.
_ALIKE = {"environment": ("device", "threads"), "settings": ("backend", "dtype")}


def read(path: Path) -> dict[str, Any]:
    """The contents of one file.

    Raises:
        BenchmarkError: When it cannot be read, or something else is in it.
    """
    try:
        found = json.loads(path.read_text())
        for row in found["rows"]:
            _ = row["shape"], row["layer"], [1 / float(row["ratio"][name]) for name in ("low", "median", "high")]
        _ = [found["environment"][name] for name in _ALIKE["environment"]]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise BenchmarkError(
            f"'{path}' could not be read ({error!r}). Give a file that a benchmark's --out wrote."
        ) from error
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Yield what keeps the ratios of two files from being comparable."""
    for part, names in _ALIKE.items():
        for name in names:
            old, new = (found.get(part, {}).get(name) for found in (before, after))
            if old != new:
                yield f"{name} ({old} before, {new} after)"


def middle(files: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """The ratio of every row by shape and layer, of the file whose median is the middle one, of two the smaller."""
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for file in files:
        for row in file["rows"]:
            found.setdefault((row["shape"], row["layer"]), []).append(row["ratio"])
    return {key: sorted(same, key=lambda ratio: ratio["median"])[(len(same) - 1) // 2] for key, same in found.items()}


def compare(
    before: dict[str, Any], after: Sequence[dict[str, Any]], tolerance: float, strict: bool = False
) -> list[dict[str, Any]]:
    """Rows that both sides have, in the order of ``after``, with the change and a verdict."""
    old = middle([before])
    compared = []
    for key, ratio in middle(after).items():
        if key not in old:
            continue
        change = ratio["median"] / old[key]["median"] - 1
        apart = strict or ratio["low"] > old[key]["high"]
        verdict = "" if change <= tolerance else SLOWER if apart else WITHIN
        row = {"shape": key[0], "layer": key[1], "before": old[key], "after": ratio}
        compared.append(row | {"change": change, "verdict": verdict})
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
    parser.add_argument("after", type=Path, nargs="+", help="JSON file of the code as it is, or several of them")
    parser.add_argument("--tolerance", type=float, default=0.1, help="growth of a ratio that is let pass")
    parser.add_argument("--strict", action="store_true", help="flag what lies within the spread, too")
    parser.add_argument("--anyway", action="store_true", help="compare files of other devices, threads or settings")
    return guarded(lambda: _run(parser.parse_args(argv)), "interrupted")


def _run(given: argparse.Namespace) -> int:
    if not given.tolerance >= 0:
        raise BenchmarkError(f"'tolerance' must be at least 0 (got {given.tolerance}). Give a share, 0.1 for 10 %.")
    before, after = read(given.before), [read(path) for path in given.after]
    for path, found in zip([given.before, *given.after], [before, *after], strict=True):
        print(_origin(path, found))
    print()
    for path, found in zip(given.after, after, strict=True):
        unlike = "; ".join(differences(before, found))
        if unlike and not given.anyway:
            raise BenchmarkError(
                f"'{path}' and '{given.before}' must be made alike (they differ in {unlike}): elsewhere, ratios change "
                "without the code. Run both alike, or use --anyway."
            )
        if unlike:
            print(f"CAUTION: {path} differs in {unlike}. Changes need not come from the code.\n")
    compared = compare(before, after, given.tolerance, given.strict)
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
    within = [row for row in compared if row["verdict"] == WITHIN]
    kept = {(row["shape"], row["layer"]) for row in compared}
    gone = [key for key in middle([before]) if key not in kept]
    for shape, layer in gone:
        print(f"gone: {shape}, {layer}")
    print(
        f"\n{len(compared)} rows compared, {len(slower)} slower by more than {given.tolerance:.0%}, "
        f"{len(within)} more within the spread, {len(gone)} gone."
    )
    return 1 if slower else 0


def _origin(path: Path, found: dict[str, Any]) -> str:
    """When, where and of which code a file was made, as far as it says so."""
    where = found["environment"]
    commit = (where.get("git_sha") or "unknown")[:12] + (" with changes" if where.get("git_dirty") else "")
    torch_version = where.get("packages", {}).get("torch", "unknown")
    unverified = ", UNVERIFIED" if found.get("settings", {}).get("no_gate") else ""
    return (
        f"{path}: {found.get('date', 'no date')}, commit {commit}, {where['device']}, {where['threads']} threads, "
        f"torch {torch_version}{unverified}"
    )


if __name__ == "__main__":
    sys.exit(main())
