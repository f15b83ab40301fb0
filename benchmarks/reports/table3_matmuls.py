"""The paper's Table 3, right: kinds of random matrices on CoLA, score and time of training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reports import notes, paper
from benchmarks.reports.figures import panels
from benchmarks.reports.page import Page, table
from benchmarks.reports.rows import EXACT, Record, Row, group, labels, median, rows_of, select
from benchmarks.reports.run import Report, main
from benchmarks.reports.scores import Scores, constant_note, number

ERRATUM = (
    "The paper's DCT and DFT rows do not speak for subsampled orthonormal transforms: in the authors' public code the "
    "cosine variant is scaled by k B instead of B / k, uses no random signs and samples with replacement, and the "
    "Fourier variant raises. With signs and without replacement, as here, such a transform has less variance than a "
    "Gaussian of the same size."
)
HEADERS = (
    "S", "score", "less exact", "time [min:s]", "over exact", "paper's S", "paper's score", "paper's less exact",
    "paper's time [min:s]", "paper's over exact",
)  # fmt: skip


def page(records: Sequence[Record]) -> Page:
    """Table 3, right, from runs of one task."""
    tasks = dict.fromkeys(record["config"]["task"] for record in records)
    task = "cola" if "cola" in tasks else next(iter(tasks))
    kept = select(records, lambda record: record["config"]["task"] == task, "runs. Leave out --report-only.")
    rows, groups = rows_of(kept), group(kept)
    found, names = Scores.of(kept, (task,)), labels(rows)
    times = {row: median(groups[task, row], "train_s") for row in rows}
    body = [[names[row], *_ours(found, times, task, row), *_papers(row)] for row in rows]
    return Page(
        title="Table 3, right: kinds of random matrices",
        reproduces=f"The paper's Table 3, right, which is about CoLA: kinds of S by score and training time. "
        f"Here: {paper.TITLES[task]}.",
        tables=[("", table(HEADERS, body))],
        notes=[
            f"Scores: 100 times the task's metric at the best evaluation, means over {_runs(groups, task, rows)}; "
            "time: of training alone, median over seeds.",
            ERRATUM,
            "Hadamard (sors) and count_sketch are not in the paper.",
            None if EXACT in rows else "No run of exact training: add none to --rate for the columns beside it.",
            None if task == "cola" else f"The task is {paper.TITLES[task]}: scores are not those of the paper's table.",
            "Times are this device's; compare the columns over exact.",
            constant_note(kept),
            *notes.of_runs(kept),
        ],
        draw=lambda path: _draw(found, times, task, path),
    )


def clock(seconds: float | None) -> str:
    """Minutes and seconds, with a decimal below ten seconds."""
    if seconds is None:
        return "-"
    return f"0:{seconds:04.1f}" if seconds < 10 else f"{round(seconds) // 60}:{round(seconds) % 60:02d}"


def _ours(found: Scores, times: dict[Row, float | None], task: str, row: Row) -> list[str]:
    mean, deviation = found.mean(task, row), found.deviation(task, row)
    score = number(mean) + ("" if deviation is None else f" ± {deviation:.2f}")
    return [score, number(found.loss(task, row), "+.2f"), clock(times[row]), number(_over(times, row))]


def _over(times: dict[Row, float | None], row: Row) -> float | None:
    seconds, exact = times[row], times.get(EXACT)
    return None if row.exact or not seconds or not exact else seconds / exact


def _papers(row: Row) -> list[str]:
    score, time = paper.TABLE3_EXACT
    if row.exact:
        return ["none", number(score), "-", time, "-"]
    family = paper.TABLE3_MATMULS.get(row.sketch or "", {}) if row.method == "rmm" else {}
    if row.rate not in family:
        return ["-"] * 5
    other, clocked = family[row.rate]
    ratio = paper.seconds(clocked) / paper.seconds(time)
    return [paper.TABLE3_NAMES[row.sketch or ""], number(other), f"{other - score:+.2f}", clocked, number(ratio)]


def _runs(groups: dict[tuple[str, Row], list[Record]], task: str, rows: Sequence[Row]) -> str:
    counts = sorted({len(groups[task, row]) for row in rows})
    return " to ".join(map(str, dict.fromkeys((counts[0], counts[-1])))) + (" runs" if counts[-1] > 1 else " run")


def _draw(found: Scores, times: dict[Row, float | None], task: str, path: Path) -> None:
    families = dict.fromkeys([*paper.TABLE3_MATMULS, *(row.sketch for row in found.rows if row.sketch)])
    exact_score, exact_time = paper.TABLE3_EXACT
    with panels(path, 2, legend="from the lowest rate to the highest") as (left, right):
        for place, family in enumerate(families):
            style = {"color": f"C{place}", "marker": "o", "label": family}
            rows = sorted((row for row in found.rows if row.sketch == family), key=lambda row: row.rate or 0)
            points = [
                (over, mean)
                for row in rows
                if (over := _over(times, row)) is not None and (mean := found.mean(task, row)) is not None
            ]
            left.plot(*zip(*points, strict=True) if points else ([], []), **style)
            by_rate = sorted(paper.TABLE3_MATMULS.get(family, {}).items())
            right.plot(
                [paper.seconds(clocked) / paper.seconds(exact_time) for _, (_, clocked) in by_rate],
                [score for _, (score, _) in by_rate],
                **style,
            )
        exact = found.mean(task, EXACT) if EXACT in found.rows else None
        for axes, score in ((left, exact), (right, exact_score)):
            axes.plot([1.0] if score is not None else [], [score] if score is not None else [], "k*", label="exact")
            axes.set_xlabel("time over exact training's")
            axes.set_ylabel("score")
        left.set_title(f"{paper.TITLES[task]}, here")
        right.set_title("CoLA, paper")


FLAGS = {
    "task": ("cola",),
    "model": (paper.MODEL,),
    "rate": ("none", "0.5", "0.2", "0.1"),
    "sketch": (*paper.TABLE3_MATMULS, "sors", "count_sketch"),
    "center": ("off",),
    "method": ("rmm",),
    "runs": ("5",),
}
SMOKE = {"model": ("tiny",), "rate": ("none", "0.5"), "sketch": ("gaussian", "sors:transform=dct"), "runs": ("1",)}
REPORT = Report("table3_matmuls", str(__doc__), FLAGS, SMOKE, page)

if __name__ == "__main__":
    sys.exit(main(REPORT))
