"""The table at the end: one row per method and its settings."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.errors import require
from benchmarks.harness.notes import format_notes
from benchmarks.harness.rows import BASELINE, Record, accuracy, group_rows, median, paired_difference

HEADERS = [
    "method",
    "settings",
    "saved by convolutions",
    "saved in all",
    "theory [B/node/layer]",
    "peak memory",
    "s/epoch",
    "test accuracy [%]",
    "difference to baseline [points]",
]


def format_report(records: Sequence[Record]) -> str:
    """Title, Markdown table and the notes needed to read it.

    Args:
        records: Finished runs of one sweep; at least one.

    Returns:
        Text that ends in a newline.
    """
    rows = group_rows(records)
    baseline = rows.get(BASELINE, [])
    largest = max(record["results"][name] or 0 for record in records for name in ("saved_total_bytes", "peak_bytes"))
    unit, scale = ("GiB", 2**30) if largest >= 2**30 else ("MiB", 2**20)
    body = [[method, settings or "-", *_cells(group, baseline, scale)] for (method, settings), group in rows.items()]
    headers = [f"{name} [{unit}]" if name.startswith(("saved", "peak")) else name for name in HEADERS]
    table = require("tabulate").tabulate(
        body,
        headers,
        tablefmt="github",
        disable_numparse=True,
        colalign=("left", "left", *["right"] * (len(headers) - 2)),
    )
    return f"{_title(records[0])}\n\n{table}\n\n{format_notes(records)}\n"


def _cells(group: Sequence[Record], baseline: Sequence[Record], scale: int) -> list[str]:
    def cost(name: str) -> str:
        value = median(group, name)
        if value is None:
            return "n/a"
        reference = median(baseline, name)
        # How many times less than the baseline: the number one looks for first.
        ratio = f" ({_times(reference, value)})" if reference and value and group is not baseline else ""
        return f"{value / scale:.4g}{ratio}"

    return [
        cost("saved_convolutions_bytes"),
        cost("saved_total_bytes") + _on_host(group, scale),
        _theory(group[0]),
        cost("peak_bytes"),
        _seconds(group, baseline),
        _accuracy(group),
        _difference(group, baseline),
    ]


def _times(reference: float, value: float) -> str:
    if value == reference:
        return "the same"
    return f"{reference / value:.2f}x less" if value < reference else f"{value / reference:.2f}x more"


def _on_host(group: Sequence[Record], scale: int) -> str:
    host, device = median(group, "saved_host_bytes"), median(group, "saved_total_bytes")
    return f" + {host / scale:.4g} on the host" if host and host > (device or 0) else ""


def _theory(record: Record) -> str:
    theory = record["theory"]
    kept, stock = theory["bytes_per_node_layer"], theory["stock_bytes_per_node_layer"]
    if kept is None:
        return "-"
    return f"{kept:.4g}" + (f" ({_times(stock, kept)})" if kept != stock else "")


def _seconds(group: Sequence[Record], baseline: Sequence[Record]) -> str:
    seconds, reference = median(group, "epoch_s") or 0.0, median(baseline, "epoch_s")
    ratio = f" ({seconds / reference:.2f}x)" if reference and group is not baseline else ""
    return f"{seconds:.3g}{ratio}"


def _accuracy(group: Sequence[Record]) -> str:
    mean, deviation = accuracy(group)
    spread = "" if deviation is None else f" +- {deviation:.2f}"
    return f"{mean:.2f}{spread} (n={len(group)})"


def _difference(group: Sequence[Record], baseline: Sequence[Record]) -> str:
    pair = None if group is baseline else paired_difference(group, baseline)
    if pair is None:
        return "-"
    mean, half, _ = pair
    return f"{mean:+.2f}" + ("" if half is None else f" [{mean - half:+.2f}, {mean + half:+.2f}]")


def _title(record: Record) -> str:
    data, config = record["dataset"], record["config"]
    return (
        f"**{data['title']}** ({data['num_nodes']:,} nodes, {data['num_edges']:,} undirected edges, "
        f"{data['num_features']} features, {data['num_classes']} classes): "
        f"GCN2, {config['layers']} layers of {config['hidden']}, {config['epochs']} epochs"
        + ("" if config["bn_momentum"] == 0.1 else f", BatchNorm momentum {config['bn_momentum']:g}")
        + _loading(record)
    )


def _loading(record: Record) -> str:
    words, processes = record.get("loading"), record["config"].get("world_size", 1)
    return (f", loader {words}" if words else "") + (f", {processes} processes" if processes > 1 else "")
