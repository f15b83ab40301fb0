"""The paper's Table 2: GLUE scores of fine-tuning at several rates, and their average."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reports import notes, paper
from benchmarks.reports.figures import panels
from benchmarks.reports.page import Page, table
from benchmarks.reports.rows import Record, labels, select
from benchmarks.reports.run import Report, main
from benchmarks.reports.scores import METRICS_NOTE, Scores, constant_note, number, paper_average, paper_loss


def page(records: Sequence[Record]) -> Page:
    """Table 2 from runs of its tasks; runs of others are passed over."""
    kept = select(
        records,
        lambda record: record["config"]["task"] in paper.TASKS,
        f"runs of at least one of {', '.join(paper.TASKS)} (got none of them). Name one with --task.",
    )
    found = Scores.of(kept, paper.TASKS)
    names = labels(found.rows)
    headers = [
        "rate", *(paper.TITLES[task] for task in found.tasks), "average", "less exact", "paper's average",
        "paper's less exact",
    ]  # fmt: skip
    body = [
        [
            names[row],
            *(number(found.mean(task, row)) for task in found.tasks),
            number(found.average(row)),
            number(found.average_loss(row), "+.2f"),
            number(paper_average(row)),
            number(paper_loss(row), "+.2f"),
        ]
        for row in found.rows
    ]
    return Page(
        title="Table 2: GLUE at several rates",
        reproduces="The paper's Table 2: scores of fine-tuned RoBERTa by task and by the share of rows kept.",
        tables=[("", table(headers, body))],
        notes=[
            METRICS_NOTE + " Means over seeds.",
            found.average_note(),
            found.missing_runs(),
            notes.not_run(paper.TASKS, found.tasks),
            f"The paper's scores by task are {paper.NOT_AT_HAND}; its averages are those of its Table 2.",
            constant_note(kept),
            *notes.of_runs(kept),
        ],
        draw=lambda path: _draw(found, path),
    )


def _draw(found: Scores, path: Path) -> None:
    with panels(path, 2, legend="") as (left, right):
        for family in dict.fromkeys(row._replace(rate=None) for row in found.rows if not row.exact):
            rows = [row for row in found.rows if row._replace(rate=None) == family]
            for task in found.tasks:
                points = [(row.rate, loss) for row in rows if (loss := found.loss(task, row)) is not None]
                left.plot(*zip(*points, strict=True) if points else ([], []), "o-", label=paper.TITLES[task])
            points = [(row.rate, loss) for row in rows if (loss := found.average_loss(row)) is not None]
            name = " ".join(filter(None, (family.method, family.sketch)))
            right.plot(*zip(*points, strict=True) if points else ([], []), "s-", label=f"average, {name}")
        exact = paper.TABLE2_AVERAGE[None]
        right.plot(paper.RATES, [paper.TABLE2_AVERAGE[rate] - exact for rate in paper.RATES], "k--", label="paper")
        for axes, title in ((left, "by task"), (right, "average")):
            axes.set_title(title)
            axes.set_xlabel("share of rows kept")
            axes.set_ylabel("score less exact training's [points]")
            axes.axhline(0, color="grey", linewidth=0.8)


FLAGS = {
    "task": paper.TASKS,
    "model": (paper.MODEL,),
    "rate": ("none", *map(str, paper.RATES)),
    "sketch": ("gaussian",),
    "center": ("off",),
    "method": ("rmm",),
    "runs": ("5",),
}
SMOKE = {"task": ("cola", "stsb"), "model": ("tiny",), "rate": ("none", "0.5", "0.1"), "runs": ("2",)}
REPORT = Report("table2", str(__doc__), FLAGS, SMOKE, page, folder="glue")

if __name__ == "__main__":
    sys.exit(main(REPORT))
