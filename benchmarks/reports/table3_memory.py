"""The paper's Table 3, left: peak memory that a training step saves at several rates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.script import guarded
from benchmarks.reports import notes, paper
from benchmarks.reports.figures import panels
from benchmarks.reports.measured import check_positive, complete, parser, prepare, sketch_note
from benchmarks.reports.page import Page, table
from benchmarks.reports.rows import EXACT, Row
from benchmarks.reports.run import INTERRUPTED, finish
from benchmarks.reports.scores import number
from benchmarks.reports.workload import TINY, Workload

NAME = "table3_memory"
GIB = 2**30
# The paper gives the batch sizes.  Lengths are chosen here, near the longest that the tasks have: the authors' public
# benchmark pads every batch to its longest sequence, cuts at the model's 512 tokens, and its peak is over an epoch.
SHAPES = {"mrpc": (128, 128), "qnli": (16, 512), "sst2": (256, 64)}
HEADERS = (
    "task", "batch", "tokens", "rate", "peak [GiB]", "peak saved [%]", "activations [GiB]", "activations saved [%]",
    "calculated for the paper's batch [%]", "paper's saved [%]",
)  # fmt: skip
Measured = dict[tuple[str, Row], dict[str, Any]]


def page(records: Sequence[dict[str, Any]]) -> Page:
    """Table 3, left, from measured steps: the records of every task and row, exact training included."""
    found: Measured = {}
    for record in records:
        config = record["config"]
        found[config["task"], Row(*config["row"])] = record
    first = records[0]["config"]
    workload = Workload(**first["workload"])
    body = [_cells(found, task, row) for task, row in found]
    shrunk = [task for task in SHAPES if (record := found.get((task, EXACT))) and _batch(record) != SHAPES[task][0]]
    row = next((row for _, row in found if not row.exact), EXACT)
    definitions = dict.fromkeys(filter(None, (record["results"].get("peak_definition") for record in records)))
    return Page(
        title="Table 3, left: memory saved",
        reproduces="The paper's Table 3, left: peak memory that fine-tuning RoBERTa saves, for three tasks at their "
        "batch sizes, by the share of rows kept.",
        tables=[("", table(HEADERS, body))],
        notes=[
            f"Model: {workload.title}; random tokens of the shape in the table, no padding: memory depends on neither. "
            "fp32, AdamW.",
            f"Peak: {'; '.join(definitions)}.",
            "Activations: bytes kept for backward in one step, by the ledger of rmm_gnn.memory_report; parameters and "
            "inputs apart. Their saving is not in the paper's table.",
            "Calculated: parameters, optimizer state and activations together, with activations scaled to the paper's "
            "batch size, with which they grow; not measured.",
            f"Lengths are chosen here; the paper's are {paper.NOT_AT_HAND}. The authors' public benchmark pads each "
            "batch to its longest sequence, cuts at 512 tokens and takes the peak of an epoch.",
            sketch_note(row, first["center"]),
            "Not comparable with the paper's column: the model is tiny." if workload.model == TINY else "",
            f"Batches smaller than the paper's: {', '.join(paper.TITLES[task] for task in shrunk)}. Parameters, "
            "gradients and optimizer state weigh more in the measured peak then." if shrunk else "",
            notes.not_run(tuple(SHAPES), [task for task, _ in found]) or "",
            notes.environments(record["environment"] for record in records),
        ],
        draw=lambda path: _draw(found, path),
    )  # fmt: skip


def _batch(record: dict[str, Any]) -> int:
    return record["config"]["workload"]["batch_size"]


def _cells(found: Measured, task: str, row: Row) -> list[str]:
    record = found[task, row]
    shape, results = record["config"]["workload"], record["results"]
    cells = [paper.TITLES[task], str(shape["batch_size"]), str(shape["length"])]
    cells.append("exact" if row.exact else f"{row.rate:g}")
    if results["out_of_memory"]:
        return [*cells, "out of memory", *"----", _paper(task, row)]
    return [
        *cells,
        f"{results['peak_bytes'] / GIB:.4g}",
        number(saving(found, task, row, "peak_bytes"), ".1f"),
        f"{results['saved_bytes'] / GIB:.4g}",
        number(saving(found, task, row, "saved_bytes"), ".1f"),
        number(calculated(found, task, row), ".1f"),
        _paper(task, row),
    ]


def saving(found: Measured, task: str, row: Row, name: str) -> float | None:
    """Per cent less than exact training; None where one of the two is missing."""
    exact = found.get((task, EXACT), {"results": {}})["results"].get(name)
    value = found[task, row]["results"].get(name)
    return None if row.exact or not exact or value is None else 100 * (1 - value / exact)


def calculated(found: Measured, task: str, row: Row) -> float | None:
    """Per cent saved of parameters, optimizer state and activations together, with activations of the paper's batch.

    None for exact training, and where it or the row ran out of memory.
    """
    exact, kept = (found.get((task, one), {"results": {}})["results"].get("saved_bytes") for one in (EXACT, row))
    if row.exact or exact is None or kept is None:
        return None
    scale = SHAPES[task][0] / _batch(found[task, row])
    return 100 * scale * (exact - kept) / (found[task, EXACT]["results"]["static_bytes"] + scale * exact)


def _paper(task: str, row: Row) -> str:
    batch = SHAPES[task][0]
    return number(paper.TABLE3_MEMORY[task, batch].get(row.rate or 0.0), ".1f")


def _draw(found: Measured, path: Path) -> None:
    tasks = list(dict.fromkeys(task for task, _ in found))
    with panels(path, len(tasks), columns=3, legend="") as axes:
        for task, one in zip(tasks, axes, strict=True):
            rows = [row for other, row in found if other == task and not row.exact]
            kinds = {
                "peak, measured": [saving(found, task, row, "peak_bytes") for row in rows],
                "calculated for the paper's batch": [calculated(found, task, row) for row in rows],
            }
            for label, values in kinds.items():
                points = [(row.rate, value) for row, value in zip(rows, values, strict=True) if value is not None]
                one.plot(*zip(*points, strict=True) if points else ([], []), "o-", label=label)
            published = paper.TABLE3_MEMORY[task, SHAPES[task][0]]
            one.plot(list(published), list(published.values()), "k--s", label="peak, paper")
            one.set_title(f"{paper.TITLES[task]}, paper's batch {SHAPES[task][0]}")
            one.set_xlabel("share of rows kept")
            one.set_ylabel("saved [%]")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing and write the report.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, 2 for something the user can put right, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    given = _parse(arguments)

    def work() -> int:
        rows, device = prepare(NAME, given)
        check_positive("length", [given.length])
        check_positive("shrink", [given.shrink])
        wanted = [
            {"task": task, "row": row, "center": given.center == "on", "workload": vars(_workload(task, given))}
            for task in given.task
            for row in rows
        ]
        from benchmarks.reports.steps import measure_memory, warm_up

        records = complete(
            given.out, wanted, device,
            lambda one: measure_memory(Workload(**one["workload"]), one["row"], one["center"], device),
            lambda: warm_up(rows, given.center == "on", device),
        )  # fmt: skip
        finish(page(records), given.out, NAME, arguments)
        return 0

    return guarded(work, INTERRUPTED)


def _workload(task: str, given: argparse.Namespace) -> Workload:
    batch_size, length = SHAPES[task]
    return Workload(given.model, given.attention, max(1, batch_size // given.shrink), given.length or length)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser(NAME, str(__doc__))
    made.add_argument("--task", nargs="+", default=list(SHAPES), choices=SHAPES, help="tasks, which give the shapes")
    made.add_argument("--length", type=int, help=f"tokens of every task; unset: {SHAPES} (batch size, tokens)")
    made.add_argument("--shrink", type=int, default=1, help="divides the batch sizes, where memory or time is short")
    made.set_defaults(rate=[0.5, 0.2, 0.1])
    if "--smoke" in arguments:
        made.set_defaults(model=TINY, shrink=64, length=16, rate=[0.5, 0.1])
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
