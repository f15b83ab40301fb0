"""The paper's Table 5: test accuracy of GCN2 on ogbn-arxiv, exact, by EXACT and with sketches at rate 0.1."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.rows import BASELINE, Record, accuracy, label, paired_difference
from benchmarks.reports import gcn2_cost, paper
from benchmarks.reports.figures import panels
from benchmarks.reports.gcn2 import FLAGS, FOLDER, SMOKE, Runs, common_notes, is_the_papers_data, median_of, paper_row
from benchmarks.reports.page import Page, table
from benchmarks.reports.run import ARXIV, Report, main

MIB = 2**20


def page(records: Sequence[Record]) -> Page:
    """Table 5 from the runs with most epochs, and what the sketches of all runs cost."""
    runs = Runs.of(records)
    body = [_cells(group, runs.trained.get(BASELINE, [])) for group in runs.trained.values()]
    headers = [
        "row", "runs", "test accuracy [%]", "less baseline [points]", "the paper's row", "its accuracy",
        "less its baseline", "saved in all [MiB]", "s/epoch",
    ]  # fmt: skip
    return Page(
        title="Table 5: GCN2 on ogbn-arxiv",
        reproduces="The paper's Table 5: test accuracy of GCN2 on ogbn-arxiv, exact, by EXACT, and with sketches of a "
        "tenth of the rows; three runs.",
        tables=[("", table(headers, body)), (gcn2_cost.CAPTION, gcn2_cost.cost_table(runs))],
        notes=[
            "Test accuracy at the best validation epoch, mean +- standard deviation over runs. Less baseline: mean "
            "over paired seeds, in brackets its 95 % interval (Student's t).",
            "Saved in all: what the forward pass of a training step leaves for backward; parameters, features and "
            "adjacency not counted. s/epoch: median training step, evaluation not counted.",
            gcn2_cost.NOTE,
            *common_notes(runs),
        ],
        draw=lambda path: _draw(runs, path),
    )


def _cells(group: Sequence[Record], baseline: Sequence[Record]) -> list[str]:
    name, saved, seconds = paper_row(group[0]), median_of(group, "saved_total_bytes"), median_of(group, "epoch_s")
    theirs = None if name is None else paper.TABLE5[name]
    return [
        label((group[0]["config"]["method"], group[0]["settings"])),
        str(len(group)),
        _spread(*accuracy(group)),
        "-" if group is baseline else _difference(group, baseline),
        name or "-",
        "-" if theirs is None else _spread(*theirs),
        "-" if theirs is None or name == "Baseline" else f"{theirs[0] - paper.TABLE5['Baseline'][0]:+.2f}",
        "-" if saved is None else f"{saved / MIB:.4g}",
        "-" if seconds is None else f"{seconds:.3g}",
    ]


def _spread(mean: float, deviation: float | None) -> str:
    return f"{mean:.2f}" + ("" if deviation is None else f" +- {deviation:.2f}")


def _difference(group: Sequence[Record], baseline: Sequence[Record]) -> str:
    pair = paired_difference(group, baseline)
    if pair is None:
        return "-"
    mean, half, _ = pair
    return f"{mean:+.2f}" + ("" if half is None else f" [{mean - half:+.2f}, {mean + half:+.2f}]")


def _draw(runs: Runs, path: Path) -> None:
    """Each row's difference to the baseline, a point with its interval; the paper's beside it, a cross."""
    baseline = runs.trained.get(BASELINE, [])
    with panels(path, 1) as (axes,):
        for place, (row, group) in enumerate(runs.trained.items()):
            pair = None if row == BASELINE else paired_difference(group, baseline)
            if pair is not None:
                axes.errorbar(pair[0], place, xerr=pair[1], fmt="o", color="C0", label="_" if place else None)
            name = paper_row(group[0])
            if name not in (None, "Baseline"):
                axes.plot(paper.TABLE5[name][0] - paper.TABLE5["Baseline"][0], place, "x", color="C1")
        axes.axvline(0, color="grey", linewidth=0.8)
        axes.set_yticks(range(len(runs.trained)), [label(row) for row in runs.trained], fontsize="x-small")
        axes.invert_yaxis()
        same = "" if is_the_papers_data(runs.first) else ", on other data"
        axes.set_xlabel(f"test accuracy less baseline's [points]; x: the paper's{same}", fontsize="small")


REPORT = Report("table5", str(__doc__), FLAGS, SMOKE, page, folder=FOLDER, harness=ARXIV)

if __name__ == "__main__":
    sys.exit(main(REPORT))
