"""The paper's Figure 2: peak memory against batch size, and throughput against the rate."""

from __future__ import annotations

import argparse
import statistics
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
from benchmarks.reports.workload import TINY, Workload

NAME = "fig2"
GIB = 2**30
THROUGHPUT_HEADERS = ("rate", "throughput over exact", "20 % to 80 %", "median step [s]", "sequences/s")
Record = dict[str, Any]


def page(records: Sequence[Record]) -> Page:
    """Figure 2 from measured steps: memory by batch size and row, and one record of interleaved times."""
    memory = {
        (_batch(record), Row(*record["config"]["row"])): record for record in records if _kind(record) == "memory"
    }
    (times,) = (record for record in records if _kind(record) == "time")
    seconds = {Row(*row): values for row, values in times["results"]["seconds"]}
    first = times["config"]
    workload = Workload(**first["workload"])
    rows = list(dict.fromkeys(row for _, row in memory))
    batches = sorted({batch for batch, _ in memory})
    definitions = dict.fromkeys(filter(None, (record["results"].get("peak_definition") for record in records)))
    row = next((row for row in seconds if not row.exact), EXACT)
    return Page(
        title="Figure 2: memory against batch size, throughput against rate",
        reproduces="The paper's Figure 2: peak memory of fine-tuning RoBERTa against batch size, and throughput "
        "relative to exact training against the share of rows kept.",
        tables=[
            ("Peak memory [GiB], in brackets the activations kept for backward, by batch size:", _memory(memory, rows)),
            (f"Throughput, batches of {workload.batch_size}:", _throughput(seconds, workload.batch_size)),
        ],
        notes=[
            f"Model: {workload.title}; random tokens, {workload.length} to a sequence. fp32, AdamW.",
            f"Peak: {'; '.join(definitions)}.",
            "Activations: by the ledger of rmm_gnn.memory_report; parameters and inputs apart.",
            f"Throughput: training steps timed in one process, the rows in turn in each of {len(seconds[EXACT])} "
            "rounds after one that does not count; exact's median over the row's, and over its 80 and 20 % quantiles.",
            "In the paper's figure, training is faster than exact only at rates of 0.1 and below; its values, task and "
            f"lengths are {paper.NOT_AT_HAND}.",
            sketch_note(row, first["center"]),
            "The model is tiny: not comparable with the paper." if workload.model == TINY else "",
            notes.environments(record["environment"] for record in records),
        ],
        draw=lambda path: _draw(memory, rows, batches, seconds, path),
    )


def _kind(record: Record) -> str:
    return record["config"]["kind"]


def _batch(record: Record) -> int:
    return record["config"]["workload"]["batch_size"]


def _label(row: Row) -> str:
    return "exact" if row.exact else f"{row.rate:g}"


def _memory(memory: dict[tuple[int, Row], Record], rows: Sequence[Row]) -> str:
    batches = sorted({batch for batch, _ in memory})
    body = [[str(batch), *(_cell(memory[batch, row]["results"]) for row in rows)] for batch in batches]
    return table(["batch", *map(_label, rows)], body)


def _cell(results: dict[str, Any]) -> str:
    if results["out_of_memory"]:
        return "out of memory"
    return f"{results['peak_bytes'] / GIB:.4g} ({results['saved_bytes'] / GIB:.4g})"


def _throughput(seconds: dict[Row, list[float]], batch_size: int) -> str:
    body = []
    for row, values in seconds.items():
        low, middle, high = relative(seconds, row)
        step = statistics.median(values)
        body.append(
            [_label(row), f"{middle:.3f}", f"{low:.3f} to {high:.3f}", f"{step:.4g}", f"{batch_size / step:.4g}"]
        )
    return table(THROUGHPUT_HEADERS, body)


def relative(seconds: dict[Row, list[float]], row: Row) -> tuple[float, float, float]:
    """Throughput of a row over exact training's: at the 80 % quantile of its times, their median, the 20 % quantile."""
    exact, values = statistics.median(seconds[EXACT]), seconds[row]
    cuts = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 4
    return exact / cuts[3], exact / statistics.median(values), exact / cuts[0]


def _draw(
    memory: dict[tuple[int, Row], Record], rows: Sequence[Row], batches: Sequence[int],
    seconds: dict[Row, list[float]], path: Path,
) -> None:  # fmt: skip
    with panels(path, 2) as (left, right):
        for row in rows:
            points = [(batch, memory[batch, row]["results"].get("peak_bytes")) for batch in batches]
            points = [(batch, peak / GIB) for batch, peak in points if peak is not None]
            left.plot(*zip(*points, strict=True) if points else ([], []), "o-", label=_label(row))
        left.set_xlabel("batch size")
        left.set_ylabel("peak memory [GiB]")
        left.legend(title="rate", fontsize="small")
        rates = [row for row in seconds if not row.exact]
        spread = [relative(seconds, row) for row in rates]
        errors = [[middle - low for low, middle, _ in spread], [high - middle for _, middle, high in spread]]
        right.errorbar(
            [row.rate for row in rates], [middle for _, middle, _ in spread], yerr=errors, marker="o", capsize=3
        )
        right.axhline(1, color="black", linewidth=0.8)
        right.set_xlabel("share of rows kept")
        right.set_ylabel("throughput over exact training's")


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
        for name in ("length", "rounds", "throughput_batch_size"):
            check_positive(name, [getattr(given, name)])
        check_positive("batch_size", given.batch_size)
        finish(page(_measure(given, rows, device)), given.out, NAME, arguments)
        return 0

    return guarded(work, INTERRUPTED)


def _measure(given: argparse.Namespace, rows: Sequence[Row], device: Any) -> list[Record]:
    from benchmarks.reports.steps import measure_memory, measure_times, warm_up

    center = given.center == "on"

    def config(batch_size: int, **others: Any) -> dict[str, Any]:
        workload = Workload(given.model, given.attention, batch_size, given.length)
        return {"center": center, "workload": vars(workload), **others}

    wanted = [config(size, kind="memory", row=row) for size in given.batch_size for row in rows]
    wanted.append(config(given.throughput_batch_size, kind="time", rows=rows, rounds=given.rounds))

    def measure(one: dict[str, Any]) -> dict[str, Any]:
        workload = Workload(**one["workload"])
        if one["kind"] == "memory":
            return measure_memory(workload, one["row"], center, device)
        seconds = measure_times(workload, rows, center, device, given.rounds)
        return {"seconds": [[row, values] for row, values in seconds.items()]}

    return complete(given.out, wanted, device, measure, lambda: warm_up(rows, center, device))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser(NAME, str(__doc__))
    made.add_argument("--batch-size", type=int, nargs="+", default=[16, 32, 64, 128], help="for the memory")
    made.add_argument("--throughput-batch-size", type=int, default=32, help="for the throughput")
    made.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    made.add_argument("--rounds", type=int, default=9, help="timed rounds")
    made.set_defaults(rate=[0.9, 0.5, 0.2, 0.1, 0.05])
    if "--smoke" in arguments:
        made.set_defaults(model=TINY, batch_size=[2, 4], throughput_batch_size=4, length=16, rounds=2, rate=[0.5, 0.1])
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
