"""The paper's Figures 3 and 5: the noise of one layer's weight gradient during fine-tuning, and the bound on it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness.errors import BenchmarkError
from benchmarks.reports import notes, paper
from benchmarks.reports.figures import panels
from benchmarks.reports.page import Page, table
from benchmarks.reports.rows import Record, labels, rows_of, select
from benchmarks.reports.run import Report, main

Series = dict[str, np.ndarray]

QUANTITIES = {
    "sgd_variance": "D2_SGD, from the choice of samples (9)",
    "paper_rmm_variance": "D2_RMM by the paper's formula (11)",
    "rmm_variance": "D2_RMM, exact",
    "paper_left": "left side of (12), D2_RMM by (11)",
    "left": "left side of (12), D2_RMM exact",
    "bound": "right side of (12), (1 + alpha) / alpha",
    "alignment": "alpha (13)",
}
HEADERS = ("quantity", "first", "last", "median", "10 % to 90 % of steps")
ERRATA = (
    "Formula (11) has the wrong sign: for Gaussian S, not centred, the variance is (|X|^2 |Y|^2 + |X^T Y|^2) / k; "
    "(11) subtracts the second term, since its proof drops a fourth moment in (36). Both are shown.",
    "The bound (12), Theorem 2.3, does not hold in general: with rows x_i = t_i u, y_i = v / t_i, D2_SGD is 0, D2_RMM "
    "is not, and the right side is finite. Where the curves obey it, it is these batches that do.",
)


def page(records: Sequence[Record]) -> Page:
    """The noise of the first run that was probed, of one row and task."""
    kept = select(
        records,
        lambda record: record["config"]["rate"] is not None and bool(record["noise"] and record["noise"]["step"]),
        "sketched runs with --probe-every N (got none). Run them again with it.",
    )
    rows, tasks = rows_of(kept), list(dict.fromkeys(record["config"]["task"] for record in kept))
    if len(rows) > 1 or len(tasks) > 1:
        raise BenchmarkError(
            f"'out' must hold probed runs of one task and row (got {', '.join([*tasks, *labels(rows).values()])}). "
            "Choose another --out."
        )
    run = kept[0]
    config, layer = run["config"], run["noise"]["layer"]
    series = series_of(run)
    body = [[words, *_cells(series[name])] for name, words in QUANTITIES.items()]
    return Page(
        title="Figures 3 and 5: noise of a weight gradient during fine-tuning",
        reproduces="The paper's Figures 3 and 5: D2_SGD (9), D2_RMM (11), both sides of (12) and alpha (13) against "
        "steps, for one dense layer on CoLA with batches of 64 at rate 0.5. "
        f"Here: {layer}, {paper.TITLES[tasks[0]]}, batches of {config['batch_size']}, rate {config['rate']:g}.",
        tables=[("", table(HEADERS, body))],
        notes=[
            *ERRATA,
            _obeyed(series),
            "B in these formulas is the number of rows of the flattened input, which is the batch times the length of "
            "its sequences. The left side of (12) is B_proj / (B - 1) D2_RMM / D2_SGD, and B_proj / (B - 1) is taken "
            "as the rate.",
            f"One run, of seed {config['seed']}. The paper shows curves; their values are {paper.NOT_AT_HAND}.",
            *notes.of_runs([run]),
        ],
        draw=lambda path: _draw(series, layer, path),
    )


def series_of(record: Record) -> Series:
    """The recorded quantities and both sides of (12), by step."""
    noise, rate = record["noise"], record["config"]["rate"]
    names = ("step", "sgd_variance", "rmm_variance", "paper_rmm_variance", "alignment")
    series = {name: np.array(noise[name], dtype=float) for name in names}  # null becomes nan
    with np.errstate(divide="ignore", invalid="ignore"):
        series["left"] = rate * series["rmm_variance"] / series["sgd_variance"]
        series["paper_left"] = rate * series["paper_rmm_variance"] / series["sgd_variance"]
        series["bound"] = (1 + series["alignment"]) / series["alignment"]
    return series


def _cells(values: np.ndarray) -> list[str]:
    finite = values[np.isfinite(values)]
    if not len(finite):
        return ["-"] * (len(HEADERS) - 1)
    low, high = np.quantile(finite, [0.1, 0.9])
    return [f"{values[0]:.4g}", f"{values[-1]:.4g}", f"{np.median(finite):.4g}", f"{low:.4g} to {high:.4g}"]


def _obeyed(series: Series) -> str:
    def share(name: str) -> str:
        return f"{100 * np.mean(series[name] <= series['bound']):.0f} %"

    return (
        f"The left side of (12) is below the right one at {share('paper_left')} of the {len(series['step'])} probed "
        f"steps with D2_RMM by (11), at {share('left')} with the exact one."
    )


def _draw(series: Series, layer: str, path: Path) -> None:
    style = {"marker": "o" if len(series["step"]) < 20 else None, "markersize": 3, "linewidth": 1}
    with panels(path, 3, columns=3) as (noise, bound, alignment):
        for name in ("sgd_variance", "paper_rmm_variance", "rmm_variance"):
            noise.plot(series["step"], series[name], label=QUANTITIES[name], **style)
        for name in ("paper_left", "left", "bound"):
            bound.plot(series["step"], series[name], label=QUANTITIES[name], **style)
        alignment.plot(series["step"], series["alignment"], label=QUANTITIES["alignment"], **style)
        titles = ("variance of the weight gradient", "(12), erratum: no bound in general", layer)
        for axes, title in zip((noise, bound, alignment), titles, strict=True):
            axes.set_title(title, fontsize="medium")
            axes.set_xlabel("step")
            axes.set_yscale("log")
            axes.legend(fontsize="x-small")
        noise.set_ylabel("(11), erratum: wrong sign", fontsize="small")


FLAGS = {
    "task": ("cola",),
    "model": (paper.MODEL,),
    "rate": ("0.5",),
    "sketch": ("gaussian",),
    "center": ("off",),
    "method": ("rmm",),
    "batch-size": ("64",),
    "probe-every": ("10",),
    "runs": ("1",),
}
SMOKE = {"model": ("tiny",), "probe-every": ("1",), "batch-size": ("8",)}
REPORT = Report("fig3_fig5", str(__doc__), FLAGS, SMOKE, page)

if __name__ == "__main__":
    sys.exit(main(REPORT))
