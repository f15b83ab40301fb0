"""The paper's Figure 7: test accuracy of GCN2 on ogbn-arxiv against epoch."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.rows import BASELINE, Record, accuracy, label
from benchmarks.reports import paper
from benchmarks.reports.curves import draw, mean_curve
from benchmarks.reports.figures import panels
from benchmarks.reports.gcn2 import FLAGS, FOLDER, SMOKE, Runs, common_notes, is_the_papers_data, paper_row
from benchmarks.reports.page import Page, table
from benchmarks.reports.run import ARXIV, Report, main

HEADERS = (
    "row", "runs", "test accuracy, best validation [%]", "at epoch", "test accuracy, last epoch [%]",
    "training loss, last",
)  # fmt: skip


def page(records: Sequence[Record]) -> Page:
    """The curves of the runs with most epochs."""
    runs = Runs.of(records)
    return Page(
        title="Figure 7: GCN2 on ogbn-arxiv by epoch",
        reproduces="The paper's Figure 7: test accuracy of GCN2 on ogbn-arxiv against the epoch, exact, by EXACT, and "
        "with sketches of a tenth of the rows.",
        tables=[("", table(HEADERS, [_cells(group) for group in runs.trained.values()]))],
        notes=[
            "Lines: means over runs, bands: one standard deviation. At epoch: mean over runs of the first epoch with "
            "the highest validation accuracy.",
            f"The paper shows curves; their values are {paper.NOT_AT_HAND}. "
            + (
                "Dashed: the accuracies of its Table 5."
                if is_the_papers_data(runs.first)
                else "The accuracies of its Table 5 are of other data, and are not drawn."
            ),
            *common_notes(runs),
        ],
        draw=lambda path: _draw(runs, path),
    )


def _cells(group: Sequence[Record]) -> list[str]:
    loss = [record["curves"]["loss"][-1] for record in group]
    return [
        label((group[0]["config"]["method"], group[0]["settings"])),
        str(len(group)),
        f"{accuracy(group)[0]:.2f}",
        f"{statistics.fmean(record['results']['best_epoch'] for record in group):.4g}",
        f"{100 * statistics.fmean(record['curves']['test'][-1] for record in group):.2f}",
        "-" if None in loss else f"{statistics.fmean(loss):.4f}",
    ]


def _draw(runs: Runs, path: Path) -> None:
    with panels(path, 1, legend="") as (axes,):
        for row, group in runs.trained.items():
            epochs, mean, spread = mean_curve(group, "curves", "test", at="epochs")
            style = {"color": "black"} if row == BASELINE else {}
            draw(axes, (epochs, 100 * mean, 100 * spread), label(row), **style)
            name = paper_row(group[0])
            if name is not None and is_the_papers_data(runs.first):
                axes.axhline(paper.TABLE5[name][0], color=axes.lines[-1].get_color(), linestyle="--", linewidth=0.8)
        axes.set_xlabel("epoch")
        axes.set_ylabel("test accuracy [%]")


REPORT = Report("fig7", str(__doc__), FLAGS, SMOKE, page, folder=FOLDER, harness=ARXIV)

if __name__ == "__main__":
    sys.exit(main(REPORT))
