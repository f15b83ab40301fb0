"""The paper's Table 4: GLUE scores at several rates with standard deviations over seeds, WNLI included."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reports import notes, paper, table2
from benchmarks.reports.figures import panels
from benchmarks.reports.page import Page, table
from benchmarks.reports.rows import EXACT, Record, Row, labels, select
from benchmarks.reports.run import Report, main
from benchmarks.reports.scores import METRICS_NOTE, Scores, constant_note, number, paper_average

TASKS = (*paper.TASKS, "wnli")


def page(records: Sequence[Record]) -> Page:
    """Table 4 from runs of the nine tasks."""
    kept = select(
        records,
        lambda record: record["config"]["task"] in TASKS,
        f"runs of at least one of {', '.join(TASKS)} (got none of them). Name one with --task.",
    )
    found = Scores.of(kept, TASKS)
    names = labels(found.rows)
    headers = ["rate", *(paper.TITLES[task] for task in found.tasks), "average", "paper's average"]
    body = [
        [
            names[row],
            *(_cell(found, task, row) for task in found.tasks),
            number(found.average(row)),
            number(paper_average(row)),
        ]
        for row in found.rows
    ]
    return Page(
        title="Table 4: GLUE at several rates, with deviations",
        reproduces=(
            "The paper's Table 4: scores of fine-tuned RoBERTa by task and by the share of rows kept, with standard "
            "deviations and WNLI."
        ),
        tables=[("", table(headers, body))],
        notes=[
            METRICS_NOTE + " Mean ± standard deviation over seeds (ddof = 1), n of them.",
            found.average_note() + " WNLI is never in it.",
            found.missing_runs(),
            notes.not_run(TASKS, found.tasks),
            f"The paper's scores and deviations by task are {paper.NOT_AT_HAND}; the averages are its Table 2's.",
            "Runs with one seed in different rows start from the same weights and see the same batches.",
            constant_note(kept),
            *notes.of_runs(kept),
        ],
        draw=lambda path: _draw(found, path),
    )


def _cell(found: Scores, task: str, row: Row) -> str:
    mean, deviation = found.mean(task, row), found.deviation(task, row)
    if mean is None:
        return "-"
    spread = "" if deviation is None else f" ± {deviation:.2f}"
    return f"{mean:.2f}{spread} (n={len(found.values[task, row])})"


def _draw(found: Scores, path: Path) -> None:
    with panels(path, len(found.tasks), columns=3, legend="") as axes:
        for task, one in zip(found.tasks, axes, strict=True):
            exact = found.mean(task, EXACT) if EXACT in found.rows else None
            if exact is not None:
                spread = found.deviation(task, EXACT) or 0.0
                one.axhline(exact, color="black", linewidth=1, label="exact")
                one.axhspan(exact - spread, exact + spread, color="black", alpha=0.1, linewidth=0)
            for family in dict.fromkeys(row._replace(rate=None) for row in found.rows if not row.exact):
                rows = [row for row in found.rows if row._replace(rate=None) == family and found.values[task, row]]
                one.errorbar(
                    [row.rate for row in rows],
                    [found.mean(task, row) for row in rows],
                    yerr=[found.deviation(task, row) or 0.0 for row in rows],
                    marker="o",
                    capsize=3,
                    label=" ".join(filter(None, (family.method, family.sketch))),
                )
            one.set_title(paper.TITLES[task])
            one.set_xlabel("share of rows kept")
            one.set_ylabel("score")


FLAGS = {**table2.FLAGS, "task": TASKS}
SMOKE = {**table2.SMOKE, "task": ("cola", "wnli")}
REPORT = Report("table4", str(__doc__), FLAGS, SMOKE, page, folder="glue")

if __name__ == "__main__":
    sys.exit(main(REPORT))
