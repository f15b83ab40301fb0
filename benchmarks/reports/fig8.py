"""The paper's Figure 8: memory in use over one epoch of the GLUE tasks at several rates."""

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

GIB = 2**30
Groups = dict[tuple[str, Row], list[Record]]
HEADERS = ("task", "rate", "steps", "mean [GiB]", "highest [GiB]", "mean saved [%]", "highest saved [%]")


def page(records: Sequence[Record]) -> Page:
    """The curves of all tasks that have runs with tracked memory."""
    kept = select(
        records,
        lambda record: bool(record["memory"] and record["memory"]["step"]),
        "runs with --track-memory (got none). Run them again with it.",
    )
    tasks, rows, groups = tasks_of(kept, tuple(paper.TITLES)), rows_of(kept), group(kept)
    names = labels(rows)
    body = [_cells(groups, names, task, row) for task in tasks for row in rows if (task, row) in groups]
    definitions = dict.fromkeys(record["memory"]["definition"] for record in kept)
    return Page(
        title="Figure 8: memory over an epoch",
        reproduces="The paper's Figure 8: memory of training by step over one epoch of eight GLUE tasks, by the share "
        f"of rows kept. Here: {', '.join(paper.TITLES[task] for task in tasks)}.",
        tables=[("", table(HEADERS, body, words=2))],
        notes=[
            f"Memory: {'; '.join(definitions)}. Saved: against exact training of the same task.",
            f"The paper shows curves; their values are {paper.NOT_AT_HAND}.",
            notes.not_run(paper.TASKS, tasks),
            *notes.of_runs(kept, epochs=1),
        ],
        draw=lambda path: _draw(groups, names, tasks, path),
    )


def _cells(groups: Groups, names: dict[Row, str], task: str, row: Row) -> list[str]:
    steps, used, _ = mean_curve(groups[task, row], "memory", "bytes")
    mean, highest = np.nanmean(used), np.nanmax(used)
    exact = groups.get((task, EXACT))
    saved = ["-", "-"]
    if exact is not None and not row.exact:
        reference = mean_curve(exact, "memory", "bytes")[1]
        saved = [_saved(mean, np.nanmean(reference)), _saved(highest, np.nanmax(reference))]
    return [paper.TITLES[task], names[row], str(len(steps)), f"{mean / GIB:.4g}", f"{highest / GIB:.4g}", *saved]


def _saved(used: float, reference: float) -> str:
    return f"{100 * (1 - used / reference):.1f}" if reference else "-"


def _draw(groups: Groups, names: dict[Row, str], tasks: Sequence[str], path: Path) -> None:
    with panels(path, len(tasks), columns=3, legend="rate") as axes:
        for task, one in zip(tasks, axes, strict=True):
            for row, label in names.items():
                if (task, row) in groups:
                    steps, used, spread = mean_curve(groups[task, row], "memory", "bytes")
                    style = {"color": "black"} if row.exact else {}
                    draw(one, (steps, used / GIB, spread / GIB), label, linewidth=0.9, **style)
            one.set_title(paper.TITLES[task])
            one.set_xlabel("step")
            one.set_ylabel("memory [GiB]")
            one.set_ylim(bottom=0)


FLAGS = {
    "task": paper.TASKS,
    "model": (paper.MODEL,),
    "rate": ("none", "0.5", "0.2", "0.1"),
    "sketch": ("gaussian",),
    "center": ("off",),
    "method": ("rmm",),
    "epochs": ("1",),
    "runs": ("1",),
    "track-memory": (),
}
SMOKE = {"task": ("mrpc",), "model": ("tiny",), "rate": ("none", "0.1")}
REPORT = Report("fig8", str(__doc__), FLAGS, SMOKE, page)

if __name__ == "__main__":
    sys.exit(main(REPORT))
