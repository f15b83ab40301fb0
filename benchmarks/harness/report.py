"""The table at the end: one row per method, sketch and rate."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.harness.errors import require

Record = dict[str, Any]
Row = tuple[str, str | None, float | None, bool | None]
HEADERS = [
    "method",
    "sketch",
    "rate",
    "centred",
    "saved by convolutions",
    "saved in all",
    "peak memory",
    "s/epoch",
    "test accuracy [%]",
    "difference to baseline [points]",
]


def group_rows(records: Iterable[Record]) -> dict[Row, list[Record]]:
    """Records by (method, sketch, rate, centred), in the order first met."""
    rows: dict[Row, list[Record]] = {}
    for record in records:
        config = record["config"]
        row = config["method"], config["sketch"], config["rate"], config["center"]
        rows.setdefault(row, []).append(record)
    return rows


def paired_difference(records: Sequence[Record], baseline: Sequence[Record]) -> tuple[float, float | None, int] | None:
    """Mean test-accuracy difference over the seeds both have.

    Args:
        records: Runs of one row.
        baseline: Runs of the baseline.

    Returns:
        Mean difference in points, half the width of its 95 % interval (Student's t; None below two pairs),
        number of pairs; or None without a common seed.
    """
    reference = {record["config"]["seed"]: record["results"]["test_accuracy"] for record in baseline}
    differences = [
        100 * (record["results"]["test_accuracy"] - reference[record["config"]["seed"]])
        for record in records
        if record["config"]["seed"] in reference
    ]
    if not differences:
        return None
    count = len(differences)
    if count < 2:
        return differences[0], None, count
    quantile = require("scipy.stats").t.ppf(0.975, count - 1)
    return statistics.fmean(differences), quantile * statistics.stdev(differences) / math.sqrt(count), count


def format_report(records: Sequence[Record]) -> str:
    """Title, Markdown table and the notes needed to read it.

    Args:
        records: Finished runs of one sweep; at least one.

    Returns:
        Text that ends in a newline.
    """
    rows = group_rows(records)
    baseline = rows.get(("baseline", None, None, None), [])
    largest = max(record["results"][name] or 0 for record in records for name in ("saved_total_bytes", "peak_bytes"))
    unit, scale = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    body = [
        [
            method,
            sketch or "-",
            "-" if rate is None else f"{rate:g}",
            {None: "-", True: "yes", False: "no"}[center],
            *_cells(group, baseline, scale),
        ]
        for (method, sketch, rate, center), group in rows.items()
    ]
    headers = [f"{name} [{unit}]" if name.startswith(("saved", "peak")) else name for name in HEADERS]
    table = require("tabulate").tabulate(
        body,
        headers,
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", "left", "right", "left", *["right"] * (len(headers) - 4)),
    )
    return f"{_title(records[0])}\n\n{table}\n\n{_notes(records)}\n"


def _cells(group: Sequence[Record], baseline: Sequence[Record], scale: int) -> list[str]:
    def cost(name: str) -> str:
        value = _median(group, name)
        if value is None:
            return "n/a"
        reference = _median(baseline, name)
        # How many times less than the baseline: the number one looks for first.
        ratio = f" ({_times(reference, value)})" if reference and value and group is not baseline else ""
        return f"{value / scale:.4g}{ratio}"

    accuracies = [100 * record["results"]["test_accuracy"] for record in group]
    spread = f" +- {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    accuracy = f"{statistics.fmean(accuracies):.2f}{spread} (n={len(accuracies)})"
    difference = "-"
    if group is not baseline and (pair := paired_difference(group, baseline)) is not None:
        mean, half, _ = pair
        difference = f"{mean:+.2f}" + ("" if half is None else f" [{mean - half:+.2f}, {mean + half:+.2f}]")
    return [
        cost("saved_convolutions_bytes"),
        cost("saved_total_bytes"),
        cost("peak_bytes"),
        f"{_median(group, 'epoch_s'):.3g}",
        accuracy,
        difference,
    ]


def _times(reference: float, value: float) -> str:
    return f"{reference / value:.2f}x less" if value <= reference else f"{value / reference:.2f}x more"


def _median(group: Sequence[Record], name: str) -> float | None:
    values = [record["results"][name] for record in group if record["results"][name] is not None]
    return statistics.median(values) if values else None


def _title(record: Record) -> str:
    data, config = record["dataset"], record["config"]
    return (
        f"**{data['title']}** ({data['num_nodes']:,} nodes, {data['num_edges']:,} undirected edges, "
        f"{data['num_features']} features, {data['num_classes']} classes): "
        f"GCN2, {config['layers']} layers of {config['hidden']}, {config['epochs']} epochs"
        + ("" if config["bn_momentum"] == 0.1 else f", BatchNorm momentum {config['bn_momentum']:g}")
    )


def _notes(records: Sequence[Record]) -> str:
    first = records[0]
    environment, packages = first["environment"], first["environment"]["packages"]
    split = first["dataset"]["split"]
    on_cpu = first["config"]["device"] == "cpu"
    notes = [
        f"Test accuracy at the best validation epoch, mean +- standard deviation over runs, {split}; "
        "difference: mean over paired seeds, in brackets its 95 % interval (Student's t). Pairs share weights and "
        "split; their dropout masks differ, since sketches draw from the same generator.",
        "Saved: bytes one training step keeps for backward, each storage once, where it is first kept; "
        "parameters, features and adjacency not counted."
        + (" On CPU dropout keeps an fp32 mask, four times CUDA's." if on_cpu else ""),
        f"Peak memory: {first['results']['peak_definition']}. Seconds per epoch: median "
        "training step, evaluation not counted.",
        f"{environment['device']}, {environment['threads']} threads, torch {packages['torch']}, PyG "
        f"{packages['torch-geometric']}, commit {(environment['git_sha'] or 'unknown')[:12]}"
        f"{' with uncommitted changes' if environment['git_dirty'] else ''}.",
    ]
    sketched = [record["config"] for record in records if record["config"]["center"] is not None]
    if sketched:
        notes.insert(
            1,
            "Centred: the column means are subtracted before sketching, their exact term is added back. "
            f"Sketches are stored as {sketched[0]['codec']}.",
        )
    if first["features_are_stand_ins"]:
        notes.insert(
            0,
            "The features are stand-ins made from GPT predictions, not OGB's: not comparable with "
            "published ogbn-arxiv numbers.",
        )
    return "\n".join(f"- {note}" for note in notes)
