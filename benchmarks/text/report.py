"""The tables at the end: one per task, and the averages over tasks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.harness.errors import require
from benchmarks.harness.rows import mean_difference, median
from benchmarks.text.notes import format_notes
from benchmarks.text.tasks import TASKS

Record = dict[str, Any]
Row = tuple[str, str]
BASELINE: Row = ("baseline", "")
_HEADERS = (
    "method", "settings", "score", "difference [points]", "saved [MiB]", "peak memory [MiB]", "ms/step"
)  # fmt: skip
_MIB = 2**20


def format_report(records: Sequence[Record]) -> str:
    """Markdown tables and the notes needed to read them.

    Args:
        records: Finished runs of one sweep; at least one.

    Returns:
        Text that ends in a newline.
    """
    by_task = _group(records, lambda record: record["config"]["task"])
    parts = [f"{_title(group[0])}\n\n{_table(rows_of(group))}" for group in by_task.values()]
    if len(by_task) > 1:
        parts.append(f"**Average over {len(by_task)} tasks**, scores x 100\n\n{_averages(by_task)}")
    return "\n\n".join([*parts, format_notes(records)]) + "\n"


def _group(records: Iterable[Record], name: Any) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(name(record), []).append(record)
    return groups


def rows_of(records: Iterable[Record]) -> dict[Row, list[Record]]:
    """Records of one task by (method, settings), in the order first met."""
    return _group(records, lambda record: (record["config"]["method"], record["settings"]))


def _title(record: Record) -> str:
    task, config, data = TASKS[record["config"]["task"]], record["config"], record["data"]
    headline = f"mean of {' and '.join(task.metrics)}" if task.headline == "mean" else task.headline
    return (
        f"**{task.folder}**, {headline} x 100 on the development set ({data['eval_examples'][0]:,} examples; "
        f"{data['train_examples']:,} to train on): {data['model']}, {record['results']['steps']:,} steps of "
        f"{config['batch_size']}, learning rate {config['lr']:g}, {config['precision']}"
    )


def _table(rows: dict[Row, list[Record]]) -> str:
    baseline = rows.get(BASELINE, [])
    return _format([[*_name(row), *_cells(group, baseline)] for row, group in rows.items()], _HEADERS)


def _cells(group: Sequence[Record], baseline: Sequence[Record]) -> list[str]:
    def cost(name: str, scale: float) -> str:
        value, reference = median(group, name), median(baseline, name)
        if value is None:
            return "n/a"
        ratio = f" ({value / reference:.2f}x)" if reference and group is not baseline else ""
        return f"{value / scale:.4g}{ratio}"

    return [
        _mean([record["results"]["score"] for record in group]),
        "-" if group is baseline else _interval(_differences(group, baseline).values()),
        cost("saved_bytes", _MIB),
        cost("peak_bytes", _MIB),
        cost("step_s", 1e-3),
    ]


def _averages(by_task: dict[str, list[Record]]) -> str:
    """As the paper's Table 2: a row for a method and its settings, a column for a task; rows that every task has."""
    tables = [rows_of(group) for group in by_task.values()]
    body = []
    for row in tables[0]:
        if all(row in table for table in tables):
            means = [statistics.fmean(record["results"]["score"] for record in table[row]) for table in tables]
            pairs = _task_means([_differences(table[row], table.get(BASELINE, [])) for table in tables])
            scores = [f"{mean:.2f}" for mean in (*means, statistics.fmean(means))]
            body.append([*_name(row), *scores, "-" if row == BASELINE else _interval(pairs)])
    folders = [TASKS[name].folder for name in by_task]
    return _format(body, ("method", "settings", *folders, "average", "difference [points]"))


def _differences(group: Sequence[Record], baseline: Sequence[Record]) -> dict[int, float]:
    """Score less the baseline's, by the seeds that both have."""
    reference = {record["config"]["seed"]: record["results"]["score"] for record in baseline}
    scores = {record["config"]["seed"]: record["results"]["score"] for record in group}
    return {seed: score - reference[seed] for seed, score in scores.items() if seed in reference}


def _task_means(differences: Sequence[dict[int, float]]) -> list[float]:
    """The mean over tasks, for every seed that all of them have: one sample a seed, not one a run."""
    seeds = set.intersection(*(set(task) for task in differences))
    return [statistics.fmean(task[seed] for task in differences) for seed in sorted(seeds)]


def _interval(differences: Iterable[float]) -> str:
    found = mean_difference(list(differences))
    if found is None:
        return "-"
    mean, half, count = found
    return f"{mean:+.2f}" + ("" if half is None else f" [{mean - half:+.2f}, {mean + half:+.2f}]") + f" (n={count})"


def _mean(values: Sequence[float]) -> str:
    spread = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} (n={len(values)})"


def _name(row: Row) -> list[str]:
    return [row[0], row[1] or "-"]


def _format(body: list[list[str]], headers: Sequence[str]) -> str:
    align = ("left", "left", *["right"] * (len(headers) - 2))
    return require("tabulate").tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align)
