"""Runs grouped into the rows of a table, and what a row's runs say together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.harness.errors import require

Record = dict[str, Any]
Row = tuple[str, str]
BASELINE: Row = ("baseline", "")


def group_rows(records: Iterable[Record]) -> dict[Row, list[Record]]:
    """Records by (method, settings), in the order first met."""
    rows: dict[Row, list[Record]] = {}
    for record in records:
        rows.setdefault((record["config"]["method"], record["settings"]), []).append(record)
    return rows


def label(row: Row) -> str:
    """A row's name in pictures, such as ``rmm count_sketch 0.1 fp32, x0 fp32``."""
    return " ".join(filter(None, row))


def median(group: Sequence[Record], name: str) -> float | None:
    """Median of a result over the runs that have it; None where none has."""
    values = [record["results"][name] for record in group if record["results"][name] is not None]
    return statistics.median(values) if values else None


def accuracy(group: Sequence[Record]) -> tuple[float, float | None]:
    """Mean test accuracy in per cent and standard deviation over runs (ddof = 1; None for one run)."""
    values = [100 * record["results"]["test_accuracy"] for record in group]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def paired_difference(records: Sequence[Record], baseline: Sequence[Record]) -> tuple[float, float | None, int] | None:
    """Mean test-accuracy difference over the seeds both have.

    Args:
        records: Runs of one row.
        baseline: Runs of the baseline.

    Returns:
        Mean difference in points, half the width of its 95 % interval (Student's t; None below two pairs),
        number of pairs; or None without a common seed.
    """
    first, second = (
        {run["config"]["seed"]: 100 * run["results"]["test_accuracy"] for run in side} for side in (records, baseline)
    )
    return mean_difference([first[seed] - second[seed] for seed in first if seed in second])


def mean_difference(differences: Sequence[float]) -> tuple[float, float | None, int] | None:
    """Mean, half the width of its 95 % interval (Student's t; None below two), count; None for no differences."""
    if not differences:
        return None
    count = len(differences)
    if count < 2:
        return differences[0], None, count
    quantile = require("scipy.stats").t.ppf(0.975, count - 1)
    return statistics.fmean(differences), quantile * statistics.stdev(differences) / math.sqrt(count), count
