"""Scores by task and row, their averages, and what they lose to exact training."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.reports import paper
from benchmarks.reports.rows import EXACT, Record, Row, group, rows_of, scores, tasks_of


@dataclass(frozen=True)
class Scores:
    """Scores of all runs.

    Attributes:
        tasks: Those with runs, in the paper's order.
        rows: Exact training first.
        values: Scores of the runs of a task and row; an empty list where there are none.
    """

    tasks: list[str]
    rows: list[Row]
    values: dict[tuple[str, Row], list[float]]

    @classmethod
    def of(cls, records: Sequence[Record], order: Sequence[str]) -> Scores:
        """Of the runs of the tasks in ``order``."""
        tasks, rows, groups = tasks_of(records, order), rows_of(records), group(records)
        return cls(tasks, rows, {(task, row): scores(groups.get((task, row), ())) for task in tasks for row in rows})

    @property
    def averaged(self) -> list[str]:
        """Tasks of Table 2 for which every row has a score: the average is over these."""
        return [task for task in self.tasks if task in paper.TASKS and all(self.values[task, row] for row in self.rows)]

    def mean(self, task: str, row: Row) -> float | None:
        values = self.values[task, row]
        return statistics.fmean(values) if values else None

    def deviation(self, task: str, row: Row) -> float | None:
        """Standard deviation over seeds (ddof = 1); None below two runs."""
        values = self.values[task, row]
        return statistics.stdev(values) if len(values) > 1 else None

    def loss(self, task: str, row: Row) -> float | None:
        """Mean score less that of exact training; None where one is missing."""
        if EXACT not in self.rows or row.exact:
            return None
        mean, exact = self.mean(task, row), self.mean(task, EXACT)
        return None if mean is None or exact is None else mean - exact

    def average(self, row: Row) -> float | None:
        """Over the tasks that all rows have; None where there are none."""
        means = [mean for task in self.averaged if (mean := self.mean(task, row)) is not None]
        return statistics.fmean(means) if means else None

    def average_loss(self, row: Row) -> float | None:
        """Average less that of exact training."""
        average, exact = self.average(row), self.average(EXACT) if EXACT in self.rows else None
        return None if row.exact or average is None or exact is None else average - exact

    def missing_runs(self) -> str | None:
        """Names tasks that have runs in some rows only, and so are not in the average."""
        partial = [paper.TITLES[task] for task in self.tasks if not all(self.values[task, row] for row in self.rows)]
        return f"Not every row has a score for: {', '.join(partial)} (left out of averages)." if partial else None

    def average_note(self) -> str:
        """What the averages are over."""
        count, of = len(self.averaged), len(paper.TASKS)
        names = ", ".join(paper.TITLES[task] for task in self.averaged) or "no task"
        return f"Average: over {names} ({count} of the paper's {of} tasks)" + (
            "." if count == of else ": not comparable with the paper's average, which is over all of them."
        )


METRICS_NOTE = (
    "Scores: 100 times Matthews correlation for CoLA, the mean of Pearson and Spearman correlation for STS-B (only "
    "Pearson's in the authors' public code), accuracy for the others (MNLI: matched), on the development set, at the "
    "best evaluation of each run."
)


def constant_note(records: Sequence[Record]) -> str | None:
    """Says how many runs learnt nothing, which a table of scores alone does not show."""
    count = sum(bool(record["results"].get("constant_predictions")) for record in records)
    return f"{count} of {len(records)} runs predict one and the same for every example." if count else None


def paper_average(row: Row) -> float | None:
    """The paper's average at the row's rate."""
    return paper.TABLE2_AVERAGE.get(row.rate)


def paper_loss(row: Row) -> float | None:
    """What the paper's average loses to exact training at the row's rate."""
    average = None if row.exact else paper_average(row)
    return None if average is None else average - paper.TABLE2_AVERAGE[None]


def number(value: float | None, form: str = ".2f") -> str:
    """A cell; a dash where there is no value."""
    return "-" if value is None else format(value, form)
