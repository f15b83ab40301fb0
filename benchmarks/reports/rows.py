"""Runs of the harness grouped into the rows of a table, and checked to belong together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.harness.errors import BenchmarkError
from benchmarks.reports.paper import TITLES

Record = dict[str, Any]

# Runs of one task can stand in one table only where these agree,
SHARED = (
    "model", "model_fingerprint", "data_fingerprint", "epochs", "max_steps", "batch_size", "lr", "weight_decay",
    "max_length", "attention_dropout", "precision", "train_examples", "eval_examples", "eval_every_steps",
)  # fmt: skip
# and these where both have them, as exact training has not.
SHARED_BY_SKETCHES = ("center", "norm_codec", "act_codec", "exclude")


class Row(NamedTuple):
    """What distinguishes the rows of a table; ``rate`` and what follows are None for exact training."""

    method: str
    rate: float | None
    sketch: str | None
    codec: str | None

    @property
    def exact(self) -> bool:
        return self.method == "baseline"


EXACT = Row("baseline", None, None, None)


def row_of(record: Record) -> Row:
    """The row a run belongs to."""
    config = record["config"]
    return EXACT if config["method"] == "baseline" else Row(*(config[name] for name in Row._fields))


def rows_of(records: Iterable[Record]) -> list[Row]:
    """All rows: exact training first, then family by family as they come, from the highest rate to the lowest."""
    found = list(dict.fromkeys(map(row_of, records)))
    families = list(dict.fromkeys(row._replace(rate=None) for row in found))
    return sorted(found, key=lambda row: (not row.exact, families.index(row._replace(rate=None)), -(row.rate or 0)))


def labels(rows: Sequence[Row]) -> dict[Row, str]:
    """Short names of rows, without what they all share; such as ``0.1`` or ``rmm-lean gaussian 0.1 int8``."""
    others = [row for row in rows if not row.exact]
    differing = [name for name in ("method", "sketch", "codec") if len({getattr(row, name) for row in others}) > 1]

    def label(row: Row) -> str:
        parts = [getattr(row, name) if name in differing else None for name in ("method", "sketch")]
        parts += [None if row.rate is None else f"{row.rate:g}", row.codec if "codec" in differing else None]
        return "exact" if row.exact else " ".join(filter(None, parts)) or row.method

    return {row: label(row) for row in rows}


def group(records: Iterable[Record]) -> dict[tuple[str, Row], list[Record]]:
    """Runs by task and row."""
    groups: dict[tuple[str, Row], list[Record]] = {}
    for record in records:
        groups.setdefault((record["config"]["task"], row_of(record)), []).append(record)
    return groups


def tasks_of(records: Iterable[Record], order: Sequence[str]) -> list[str]:
    """Tasks that have runs, in the given order; others are left out."""
    present = {record["config"]["task"] for record in records}
    return [task for task in order if task in present]


def select(records: Iterable[Record], keep: Callable[[Record], bool], needed: str) -> list[Record]:
    """The runs to show.

    Args:
        records: All runs in the folder.
        keep: Whether a run can be shown.
        needed: What is missing where none can, and how to get it.

    Raises:
        BenchmarkError: When none can be shown, or their settings differ where they must not.
    """
    kept = [record for record in records if keep(record)]
    if not kept:
        raise BenchmarkError(f"'out' must hold {needed}")
    check_agreement(kept)
    return kept


def check_agreement(records: Sequence[Record]) -> None:
    """Refuse runs of one task that differ in more than their row and seed.

    Raises:
        BenchmarkError: When they do.
    """
    first: dict[tuple[str, str], Any] = {}
    for config in (record["config"] for record in records):
        for name in (*SHARED, *SHARED_BY_SKETCHES):
            value = config.get(name)
            if value is None and name in SHARED_BY_SKETCHES:
                continue
            reference = first.setdefault((config["task"], name), value)
            if value != reference:
                raise BenchmarkError(
                    f"'out' must hold {TITLES[config['task']]} runs of one {name} (got {reference} and {value}). "
                    "Choose another --out."
                )


def scores(records: Iterable[Record]) -> list[float]:
    """Scores of runs; a run that diverged may have none."""
    found = (record["results"]["score"] for record in records)
    return [score for score in found if score is not None]


def median(records: Iterable[Record], name: str) -> float | None:
    """Median of a result over the runs that have it; None where none has."""
    values = [value for record in records if (value := record["results"].get(name)) is not None]
    return statistics.median(values) if values else None
