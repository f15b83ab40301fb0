#!/usr/bin/env python3
"""What training on a graph too large for this machine would take, projected from runs with --loader neighbor.

    python benchmarks/micro/projection.py RUNS/records.jsonl                  # the graph ogbn-papers100M, 8 processes
    python benchmarks/micro/projection.py RUNS/records.jsonl --processes 1 --nodes 2449029 --edges 61859140

Nothing of the large graph is measured. Bytes and seconds per row are those of the runs, with their width and layers.
The rows of a step are taken twice: as many per training node as in the runs, and the most that the fan-out allows.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.jsonl import read_lines
from benchmarks.harness.layerwise import peak_bytes
from benchmarks.harness.records import SCHEMA
from benchmarks.harness.rows import group_rows, label, median
from benchmarks.harness.script import guarded, parser_of

GIB = 2**30
_FP32, _INT64 = 4, 8
# Parameter, gradient, and Adam's two moments.
_COPIES = 4


@dataclass(frozen=True)
class Costs:
    """Per-row costs of a row of the table of runs.

    Attributes:
        bytes_per_row: Kept for backward, over the rows of all products but the last.
        seconds_per_row: Of sampling, forward, backward and optimiser, over the same rows: of processor time for runs on
            CPU, which other work on the machine hardly changes.
        entries_per_row: Entries of the matrices of all layers, over the rows of the convolutions.
    """

    bytes_per_row: float
    seconds_per_row: float
    entries_per_row: float


@dataclass(frozen=True)
class Case:
    """A step of a process on the large graph.

    Attributes:
        rows: That each product sees, from the first Linear to the last.
        kept_bytes: For backward.
        batch_bytes: Features, and matrices with their transposes.
        epoch_s: With rows as fast as in the runs.
    """

    rows: list[float]
    kept_bytes: float
    batch_bytes: float
    epoch_s: float


def costs_of(group: Sequence[dict[str, Any]]) -> Costs:
    """Per-row costs of the runs of one row; medians over runs, rows of the first."""
    sampling = group[0]["results"]["sampling"]
    rows = sampling["rows_per_step"]
    counted, steps = sum(rows[:-1]), sampling["steps_per_epoch"]
    saved, epoch_s = median(group, "saved_total_bytes"), median(group, "epoch_s")
    assert saved is not None and epoch_s is not None
    if group[0]["config"]["device"] == "cpu":
        epoch_s = statistics.median(record["results"]["sampling"]["cpu_s"] for record in group)
    return Costs(
        bytes_per_row=saved / counted,
        seconds_per_row=epoch_s / steps / counted,
        entries_per_row=sampling["entries_per_step"] / sum(rows[1:-1]),
    )


def rows_like(record: dict[str, Any]) -> list[float]:
    """Rows of a step with full batches, as many for each training node as in the runs."""
    sampling, seeds = record["results"]["sampling"], record["config"]["batch_size"]
    return [number * seeds / sampling["trained_rows_per_step"] for number in sampling["rows_per_step"]]


def rows_at_most(config: dict[str, Any]) -> list[float]:
    """Rows of a step where no node is found twice and none has fewer neighbours than are asked for.

    Raises:
        BenchmarkError: When all neighbours are taken: then there is no such number.
    """
    if -1 in config["fan_out"]:
        raise BenchmarkError("'fan_out' must be positive (got -1 in the records). Use runs with a bound on neighbours.")
    hops, found = [float(config["batch_size"])], float(config["batch_size"])
    for number in config["fan_out"]:
        found *= number
        hops.append(hops[-1] + found)
    layers, last = config["layers"], len(hops) - 1
    convolutions = [hops[min(last, layers - layer - 1)] for layer in range(layers)]
    return [hops[min(last, layers)], *convolutions, convolutions[-1]]


def project(costs: Costs, rows: list[float], steps: int, features: int) -> Case:
    """A step with so many rows, and an epoch of so many steps."""
    counted = sum(rows[:-1])
    entries = costs.entries_per_row * sum(rows[1:-1])
    # A matrix and its transpose: a value and a column number an entry.
    batch_bytes = rows[0] * features * _FP32 + 2 * entries * (_FP32 + _INT64)
    return Case(rows, costs.bytes_per_row * counted, batch_bytes, steps * costs.seconds_per_row * counted)


def report(records: Sequence[dict[str, Any]], given: argparse.Namespace) -> str:
    """Markdown: a table with two lines for each row of the runs, and the arithmetic."""
    config = records[0]["config"]
    steps = -(-given.train // (given.processes * config["batch_size"]))
    hidden, layers = config["hidden"], config["layers"]
    weights = layers * hidden**2 * (1 if config["shared_weights"] else 2) + 2 * layers * hidden
    parameters = weights + (given.features + 1) * hidden + (hidden + 1) * given.classes
    body = []
    for row, group in group_rows(records).items():
        costs = costs_of(group)
        cases = {"as in the runs": rows_like(group[0]), "at most": rows_at_most(config)}
        for name, rows in cases.items():
            case = project(costs, rows, steps, given.features)
            all_bytes = case.kept_bytes + case.batch_bytes + _COPIES * _FP32 * parameters
            body.append(
                [
                    label(row),
                    name,
                    ", ".join(f"{number:,.0f}" for number in rows),
                    f"{costs.bytes_per_row:.4g}",
                    f"{case.kept_bytes / GIB:.3g}",
                    f"{case.batch_bytes / GIB:.3g}",
                    f"{all_bytes / GIB:.3g}",
                    f"{costs.seconds_per_row * 1e6:.3g}",
                    f"{case.epoch_s / 3600:.3g}",
                ]
            )
    headers = [
        "method", "rows of a step", "from the first Linear to the last", "kept [B/row]", "kept [GiB]",
        "batch [GiB]", "kept, batch, weights [GiB]", "time [us/row]", "epoch [h]",
    ]  # fmt: skip
    table = require("tabulate").tabulate(body, headers, tablefmt="github", disable_numparse=True)
    entries = 2 * given.edges + given.nodes
    host = {
        "features": given.nodes * given.features * _FP32,
        "adjacency": entries * (_FP32 + _INT64),
        "what the loader adds (rows, columns and values without the diagonal, and PyG's edge list)": 2
        * given.edges
        * (_FP32 + 4 * _INT64),
        f"evaluation, {config['eval_chunk']:,} nodes at a time (three matrices of {hidden} channels, or one with the "
        f"nodes' classes and a chunk's logits for {given.classes} classes)": peak_bytes(
            given.nodes, hidden, given.classes, config["eval_chunk"]
        ),
    }
    lines = [f"  - {name}: {size / GIB:,.0f} GiB" for name, size in host.items()]
    source = records[0]["dataset"]["title"]
    return "\n".join(
        [
            f"**Projection, not measured**: {given.nodes:,} nodes, {given.edges:,} directed edges, {given.features} "
            f"features, {given.classes} classes, {given.train:,} training nodes; {given.processes} processes, "
            f"GCN2, {layers} layers of {hidden}, {records[0]['loading']}",
            "",
            table,
            "",
            f"- Steps of a process in an epoch: {given.train:,} / ({given.processes} x {config['batch_size']}), "
            f"rounded up: {steps:,}.",
            f"- Measured, on {source}, {records[0]['environment']['device']}, {records[0]['environment']['threads']} "
            f"threads a process, {config['world_size']} processes: rows per step, bytes kept, and seconds, of "
            "processor time on CPU, of sampling and steps. Per row: over the rows of all products but the last.",
            "- kept = B/row x rows. batch = features x 4 B x first number of rows + 2 x entries x 12 B, entries in "
            "proportion to the convolutions' rows. Weights, their gradients and Adam's moments: "
            f"4 x 4 B x {parameters:,}.",
            "- epoch = steps x us/row x rows, on the device of the runs. How fast another one is, what exchanging "
            "gradients between machines takes, whether reading features from the host keeps up, and transient memory "
            "of operators: not measured.",
            "- Host memory, once for each process as the benchmark stands:",
            *lines,
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the projection; returns the exit code."""
    parser = parser_of(__doc__)
    parser.add_argument("records", type=Path, help="records.jsonl of runs with --loader neighbor")
    parser.add_argument("--nodes", type=int, default=111_059_956, help="of the large graph")
    parser.add_argument("--edges", type=int, default=1_615_685_872, help="directed; both directions are used")
    parser.add_argument("--features", type=int, default=128, help="per node")
    parser.add_argument("--classes", type=int, default=172, help="number of them")
    parser.add_argument("--train", type=int, default=1_207_179, help="training nodes")
    parser.add_argument("--processes", type=int, default=8, help="GPUs, one process each")
    given = parser.parse_args(argv)

    def work() -> int:
        for name in ("nodes", "edges", "features", "classes", "train", "processes"):
            if getattr(given, name) < 1:
                raise BenchmarkError(f"'{name}' must be at least 1 (got {getattr(given, name)}). Give a count.")
        records = [
            record
            for record in (read_lines(given.records.parent, SCHEMA) if given.records.is_file() else [])
            if record["config"].get("loader") == "neighbor"
        ]
        shapes = {(record["config"]["layers"], record["config"]["hidden"], record["loading"]) for record in records}
        if len(shapes) != 1:
            raise BenchmarkError(
                f"'records' must hold runs with --loader neighbor of one width, depth and fan-out (got {len(shapes)} "
                f"in '{given.records}'). Make them with benchmarks/ogbn_arxiv.py --loader neighbor."
            )
        print(report(records, given))
        return 0

    return guarded(work, "Interrupted.")


if __name__ == "__main__":
    sys.exit(main())
