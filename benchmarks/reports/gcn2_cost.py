"""What sketching costs in the network of Table 5: operations by formula, beside the seconds that were measured."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.rows import BASELINE, Record
from benchmarks.reports import paper
from benchmarks.reports.gcn2 import DENSE, Runs, median_of
from benchmarks.reports.page import table

CAPTION = "What a sketch costs in this network, by method `rmm`:"
HEADERS = (
    "sketch", "rate", "sketching [GFLOP/epoch]", "share of all exact products", "s/epoch", "ratio to baseline",
    "epochs run",
)  # fmt: skip
Key = tuple[str, float, bool]  # sketch, rate, whether centred
NOTE = (
    "Operations by formula, for x and for the gradient of the output: 2 B k (N + M) for a dense S, one K-th of them "
    "for K blocks, 2 B (N + M) for count_sketch. The exact products of an epoch take 6 B N M a layer (the first one 4, "
    "since nobody asks for the gradient of the features). A dense S has B k entries besides, each drawn twice."
)


def layers_of(record: Record) -> list[tuple[int, int]]:
    """Width of input and output of every product that `rmm` sketches; x_0 is kept as it is."""
    data, config = record["dataset"], record["config"]
    hidden = config["hidden"]
    return [(data["num_features"], hidden), *[(hidden, hidden)] * config["layers"], (hidden, data["num_classes"])]


def exact_operations(record: Record) -> float:
    """Of all dense products of one epoch of exact training."""
    first, *others = layers_of(record)
    if not record["config"]["shared_weights"]:  # a second product in every convolution, of x_0
        others += others[:-1]
    products = 4 * first[0] * first[1] + 6 * sum(n * m for n, m in others)
    return float(record["dataset"]["num_nodes"] * products)


def sketch_operations(record: Record, sketch: str, rate: float) -> float | None:
    """Of the sketches of one epoch.

    Args:
        record: Any run of the network.
        sketch: As the command line names it.
        rate: Share of rows.

    Returns:
        The number; None for a family without a formula here.
    """
    from benchmarks.harness.methods import parse_sketch
    from rmm_gnn import RMMConfig
    from rmm_gnn.sketches import BlockRademacherSketch

    family, rows = parse_sketch(sketch), record["dataset"]["num_nodes"]
    size = RMMConfig(rate=rate, sketch=family).sketch_size(rows)
    numbers = rows * sum(n + m for n, m in layers_of(record))
    if family.name in DENSE:
        return 2.0 * size * numbers
    if isinstance(family, BlockRademacherSketch):
        return 2.0 * size * numbers / family.num_blocks(rows, size)
    return 2.0 * numbers if family.name == "count_sketch" else None


def cost_table(runs: Runs) -> str:
    """A row for every sketch that ran, and for the dense ones of the paper in any case."""
    measured: dict[Key, list[Record]] = {}
    for rows in (runs.trained, runs.timed):  # where a row was trained to the end, its time is taken from there
        for group in rows.values():
            config = group[0]["config"]
            if config["method"] == "rmm":
                measured.setdefault((config["sketch"], config["rate"], config["center"]), group)
    for sketch in DENSE:
        measured.setdefault((sketch, paper.TABLE5_RATE, False), [])
    exact = runs.trained.get(BASELINE) or runs.timed.get(BASELINE, [])
    order = sorted(measured, key=lambda key: sketch_operations(runs.first, key[0], key[1]) or 0.0)
    none = ["none", "-", "-", "-", *_time(exact, exact)]
    return table(HEADERS, [none, *(_cells(runs.first, key, measured[key], exact) for key in order)])


def _cells(record: Record, key: Key, group: Sequence[Record], exact: Sequence[Record]) -> list[str]:
    sketch, rate, center = key
    operations = sketch_operations(record, sketch, rate)
    ratio = None if operations is None else operations / exact_operations(record)
    return [
        sketch + (", centred" if center else ""),
        f"{rate:g}",
        "-" if operations is None else _short(operations / 1e9),
        "-" if ratio is None else f"{_short(ratio)}x",
        *_time(group, exact),
    ]


def _time(group: Sequence[Record], exact: Sequence[Record]) -> list[str]:
    seconds, reference = (median_of(some, "epoch_s") if some else None for some in (group, exact))
    if seconds is None:
        return ["not run", "-", "0"]
    ratio = "-" if not reference or group is exact else f"{_short(seconds / reference)}x"
    return [_short(seconds), ratio, str(sum(record["config"]["epochs"] for record in group))]


def _short(value: float) -> str:
    """Three digits, without an exponent for what is large."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
