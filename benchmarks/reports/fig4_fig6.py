"""The paper's Figures 4 and 6: loss in training and in evaluation on MNLI and QNLI at several rates."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.reports import notes, paper
from benchmarks.reports.curves import draw, mean_curve
from benchmarks.reports.figures import panels
from benchmarks.reports.page import Page, table
from benchmarks.reports.rows import EXACT, Record, Row, group, labels, rows_of, select, tasks_of
from benchmarks.reports.run import Report, main
from benchmarks.reports.scores import number

TASKS = ("mnli", "qnli")
Groups = dict[tuple[str, Row], list[Record]]
HEADERS = (
    "task",
    "rate",
    "runs",
    "training loss, last",
    "evaluation loss, lowest",
    "at step",
    "evaluation, less exact",
)


def page(records: Sequence[Record]) -> Page:
    """The curves of all tasks that have runs."""
    kept = select(
        records,
        lambda record: bool(record["curves"]["step"]),
        "runs with an evaluation (got none). Leave out --report-only.",
    )
    tasks, rows, groups = tasks_of(kept, tuple(paper.TITLES)), rows_of(kept), group(kept)
    names = labels(rows)
    body = [_cells(groups, names, task, row) for task in tasks for row in rows if (task, row) in groups]
    return Page(
        title="Figures 4 and 6: loss at several rates",
        reproduces="The paper's Figures 4 and 6, which are about MNLI and QNLI: training and evaluation loss against "
        f"steps, by the share of rows kept. Here: {', '.join(paper.TITLES[task] for task in tasks)}.",
        tables=[("", table(HEADERS, body, words=2))],
        notes=[
            "Training loss: mean over the steps since the evaluation before. Lines: means over seeds, bands: one "
            "standard deviation.",
            f"The paper shows curves; their values are {paper.NOT_AT_HAND}.",
            notes.not_run(TASKS, tasks),
            *notes.of_runs(kept),
        ],
        draw=lambda path: _draw(groups, names, tasks, path),
    )


def _cells(groups: Groups, names: dict[Row, str], task: str, row: Row) -> list[str]:
    steps, evaluation, _ = mean_curve(groups[task, row], "curves", "eval_loss")
    _, training, _ = mean_curve(groups[task, row], "curves", "train_loss")
    best = int(np.nanargmin(evaluation)) if np.isfinite(evaluation).any() else None
    exact = groups.get((task, EXACT))
    lowest = None if exact is None or row.exact else np.nanmin(mean_curve(exact, "curves", "eval_loss")[1])
    return [
        paper.TITLES[task],
        names[row],
        str(len(groups[task, row])),
        number(float(training[-1]), ".4f"),
        "-" if best is None else number(float(evaluation[best]), ".4f"),
        "-" if best is None else str(steps[best]),
        "-" if best is None or lowest is None else number(float(evaluation[best] - lowest), "+.4f"),
    ]


def _draw(groups: Groups, names: dict[Row, str], tasks: Sequence[str], path: Path) -> None:
    with panels(path, 2 * len(tasks), legend="rate") as axes:
        for place, task in enumerate(tasks):
            for one, name, title in zip(
                axes[2 * place : 2 * place + 2], ("train_loss", "eval_loss"), ("training", "evaluation"), strict=True
            ):
                for row, label in names.items():
                    if (task, row) in groups:
                        style = {"color": "black"} if row.exact else {}
                        draw(one, mean_curve(groups[task, row], "curves", name), label, **style)
                one.set_title(f"{paper.TITLES[task]}, {title}")
                one.set_xlabel("step")
                one.set_ylabel("loss")


FLAGS = {
    "task": TASKS,
    "model": (paper.MODEL,),
    "rate": ("none", *map(str, paper.RATES)),
    "sketch": ("gaussian",),
    "center": ("off",),
    "method": ("rmm",),
    "runs": ("1",),
    "eval-every-steps": ("2000",),
}
SMOKE = {
    "task": ("qnli",), "model": ("tiny",), "rate": ("none", "0.1"), "runs": ("2",), "eval-every-steps": ("2",)
}  # fmt: skip
REPORT = Report("fig4_fig6", str(__doc__), FLAGS, SMOKE, page)

if __name__ == "__main__":
    sys.exit(main(REPORT))
