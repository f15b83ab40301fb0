#!/usr/bin/env python3
"""Draw accuracy and time against the bytes kept, from what benchmarks/ogbn_arxiv.py recorded in one or several folders.

    python benchmarks/frontier.py --accuracy RUN RUN ... --time RUN --out frontier.png

Left: the mean difference of test accuracy to the baseline over the seeds that both have, with its 95 % interval. Right:
median seconds per epoch over the baseline's. Bytes are a share of the baseline's, which has to be among the records of
each side. Folders of one side have to be of one data set, network and protocol.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.jsonl import read_lines
from benchmarks.harness.methods import METHODS
from benchmarks.harness.records import SCHEMA
from benchmarks.harness.rows import BASELINE, Record, Row, group_rows, label, median, paired_difference
from benchmarks.harness.script import guarded, parser_of

_TICKS = (1, 2, 5, 10, 20, 50, 100)
_MARKERS = "osDph8H"  # wide enough for a number
# What the runs of one picture must have in common; the rest is what a method chooses.
_PROTOCOL = (
    ["data_fingerprint", "epochs", "layers", "hidden", "alpha", "theta", "shared_weights", "dropout"]
    + ["bn_momentum", "lr", "weight_decay", "clip"]
)  # fmt: skip


def read(folders: Sequence[Path]) -> dict[Row, list[Record]]:
    """The rows of all folders together, the baseline among them.

    Raises:
        BenchmarkError: When a folder has no records, the runs are not of one protocol, or there is no baseline.
    """
    records: list[Record] = []
    for folder in folders:
        found = read_lines(folder, SCHEMA)
        if not found:
            raise BenchmarkError(f"'{folder}' has no finished runs. Give a folder that ogbn_arxiv.py wrote with --out.")
        records += found
    for name in _PROTOCOL:  # older records lack some
        values = {str(record["config"].get(name)) for record in records}
        if len(values) > 1:
            raise BenchmarkError(
                f"the runs must have one '{name}' (got {', '.join(sorted(values))}). Give folders of one protocol."
            )
    rows = group_rows(records)
    if BASELINE not in rows:
        raise BenchmarkError("the runs must have a baseline among them. Run --method baseline into a folder as well.")
    return rows


def share(group: Sequence[Record], baseline: Sequence[Record]) -> float:
    """Saved bytes in per cent of the baseline's."""
    return 100 * (median(group, "saved_total_bytes") or 0.0) / (median(baseline, "saved_total_bytes") or 1.0)


def draw(accuracy: dict[Row, list[Record]], time: dict[Row, list[Record]], out: Path) -> None:
    """Draw both panels; a row that is in both has one number.

    Args:
        accuracy: What ``read`` returned.
        time: Likewise, maybe of another data set.
        out: The ending chooses the format.
    """
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    names = list(dict.fromkeys([*accuracy, *time]))
    figure, panels = plt.subplots(1, 2, sharex=True, figsize=(11, 4.4 + 0.14 * len(names)), layout="constrained")
    handles = {}
    for panel, rows, of_time in ((panels[0], accuracy, False), (panels[1], time, True)):
        baseline = rows[BASELINE]
        for row, group in rows.items():
            number, method = names.index(row) + 1, list(METHODS).index(row[0])
            value, interval = _value(group, baseline, of_time)
            style: dict[str, Any] = {
                "color": f"C{method}",
                "marker": _MARKERS[method % len(_MARKERS)],
                "linestyle": "none",
                "markersize": 13,
                "markeredgecolor": "white",
                "zorder": 2 + number,
            }
            kept = share(group, baseline)
            handles[row] = panel.errorbar(
                kept, value, yerr=interval, capsize=3, label=f"{number}  {_name(row)}", **style
            )
            text = {"color": "white", "fontsize": 6.5, "ha": "center", "va": "center", "zorder": 2.2 + number}
            panel.annotate(str(number), (kept, value), **text)
        panel.axhline(1.0 if of_time else 0.0, color="0.5", linewidth=1, zorder=0)
        panel.set_xscale("log")
        panel.set_xticks(_TICKS, [f"{tick} %" for tick in _TICKS])
        panel.minorticks_off()
        panel.set_xlabel("saved for backward, of the baseline's bytes")
        panel.grid(alpha=0.3)
        panel.margins(0.08)
        panel.set_title(_title(baseline[0], "accuracy" if not of_time else "time"), fontsize="medium")
    panels[0].set_ylabel("test accuracy, difference to exact training [points]")
    panels[1].set_ylabel("seconds per epoch, of the baseline's")
    panels[1].set_ylim(bottom=0)
    figure.legend(
        handles=[handles[row] for row in names], loc="outside lower center", ncols=2, fontsize="small", markerscale=0.7
    )
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _value(group: Sequence[Record], baseline: Sequence[Record], of_time: bool) -> tuple[float, float | None]:
    if of_time:
        return (median(group, "epoch_s") or 0.0) / (median(baseline, "epoch_s") or 1.0), None
    found = paired_difference(group, baseline)
    if found is None:
        raise BenchmarkError("every row must have a seed that the baseline has, too. Run both with the same --seed.")
    return found[0], found[1] if group is not baseline else None


def _name(row: Row) -> str:
    if row == BASELINE:
        return "exact training (stock PyG)"
    name = label(row).replace(" count_sketch", "", 1).replace(", in ", " in ")
    return name.replace("exact", "EXACT (Liu et al.)", 1) if row[0] == "exact" else name


def _title(record: Record, what: str) -> str:
    config, data = record["config"], record["dataset"]
    return (
        f"{what}: {data['title']}, {data['num_nodes']:,} nodes\nGCN2, {config['layers']} layers of {config['hidden']}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the picture.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--accuracy", type=Path, nargs="+", required=True, help="folders with runs of several seeds")
    parser.add_argument(
        "--time", type=Path, nargs="+", required=True, help="folders with runs timed on an idle machine"
    )
    parser.add_argument("--out", type=Path, default=Path("frontier.png"), help="the picture")
    given = parser.parse_args(argv)

    def work() -> int:
        draw(read(given.accuracy), read(given.time), given.out)
        print(f"wrote {given.out}")
        return 0

    return guarded(work, "Interrupted.")


if __name__ == "__main__":
    sys.exit(main())
