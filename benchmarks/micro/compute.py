#!/usr/bin/env python3
"""Noise against time: what a weight gradient costs and how noisy it is, for every sketch family, codec and centring.

    python benchmarks/micro/compute.py --root DIR                        # the ogbn-arxiv graph
    python benchmarks/micro/compute.py --dataset digits --layers 2       # embedded data, seconds

Trains the baseline, takes the input X of the last convolution's weight and the gradient Y of its output, and times
what training adds and saves: compress X in forward, and form the gradient from what is kept in backward.  The ratio is
to the exact product Y^T X, timed in the same rounds.  Noise is E|G - Y^T X|^2 / |Y^T X|^2 in closed form.  Writes
table.md, compute.json and compute.png into --out.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness.files import write_figure, write_text

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch import Tensor
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.datasets import load
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.frontier import pareto_front
from benchmarks.harness.measure import stopwatch
from benchmarks.harness.methods import parse_sketch
from benchmarks.harness.script import parser_of
from benchmarks.micro.captured import Captured, capture
from benchmarks.micro.noise import FAMILIES_OF_ROWS, measure
from rmm_gnn import RMMConfig, draw_seed
from rmm_gnn.compression import compress, weight_grad

EXACT = "exact product"
# Families that make every entry of S.
_WHOLE = {"gaussian", "rademacher"}


@dataclass(frozen=True)
class Timing:
    """One way to get a weight gradient.

    Attributes:
        label: Family, codec and centring.
        rate: Share of rows kept.
        seconds: Compression and gradient, each round.
        ratio: Median over that of the exact product.
        noise: E|G - Y^T X|^2 / |Y^T X|^2.
        share: Bytes kept over those of X.
    """

    label: str
    rate: float
    seconds: tuple[float, ...]
    ratio: float
    noise: float
    share: float


def gradient_of(seen: Captured, config: RMMConfig) -> Tensor:
    """What training computes for the weight: forward's share and backward's."""
    x, y, seed = seen.x, seen.y, draw_seed(seen.x)
    norms = seen.row_norms if config.family.reads_row_norms else None
    kept = compress(x, config, seed, norms)
    return weight_grad(y, kept, config, seed, num_columns=x.shape[1], dtype=x.dtype)[0]


def time_all(seen: Captured, configs: Sequence[tuple[str, RMMConfig]], rounds: int, limit_s: float) -> list[Timing]:
    """Time every config and the exact product, interleaved round by round after one round that does not count.

    A config that has taken ``limit_s`` in all is not repeated.
    """
    calls: dict[object, Callable[[], Tensor]] = {EXACT: lambda: seen.y.T @ seen.x}
    calls |= {number: lambda config=config: gradient_of(seen, config) for number, (_, config) in enumerate(configs)}
    seconds: dict[object, list[float]] = {key: [] for key in calls}
    warm: dict[object, list[float]] = {key: [] for key in calls}
    for number in tqdm(range(rounds + 1), desc="rounds", file=sys.stderr):
        for key, call in calls.items():
            if number == 0 or sum(warm[key]) + sum(seconds[key]) < limit_s:
                with stopwatch(seen.x.device, (seconds if number else warm)[key]):
                    call()
    times = {key: seconds[key] or warm[key] for key in calls}
    exact = statistics.median(times[EXACT])
    timings = [Timing(EXACT, 1.0, tuple(times[EXACT]), 1.0, 0.0, 1.0)]
    for number, (sketch, config) in enumerate(configs):
        assert config.rate is not None
        points = measure(seen, [sketch], [str(config.codec)], [config.rate])
        point = next(point for point in points if point.center == config.center)
        ratio = statistics.median(times[number]) / exact
        timings.append(Timing(point.label, point.rate, tuple(times[number]), ratio, point.noise, point.share))
    return timings


def format_table(timings: Sequence[Timing]) -> str:
    """Markdown, fastest first."""
    rows = []
    for timing in sorted(timings, key=lambda timing: timing.ratio):
        times_ms = sorted(1e3 * value for value in timing.seconds)
        low, high = times_ms[len(times_ms) // 5], times_ms[-1 - len(times_ms) // 5]
        rows.append(
            [
                timing.label, f"{timing.rate:g}", f"{timing.ratio:.2f}", f"{statistics.median(times_ms):.1f}",
                f"{low:.1f} - {high:.1f}", f"{timing.noise:.2g}", f"{100 * timing.share:.2f}",
            ]
        )  # fmt: skip
    headers = [
        "gradient",
        "rate",
        "time / exact",
        "median [ms]",
        "20 % - 80 % [ms]",
        "noise / signal",
        "bytes of X [%]",
    ]
    return require("tabulate").tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def draw(timings: Sequence[Timing], path: Path, title: str) -> None:
    """Noise against time, a line for each way with a point for each rate, and the frontier of all."""
    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    figure, panel = plt.subplots(figsize=(8, 6), layout="constrained")
    sketched = [timing for timing in timings if timing.label != EXACT]
    for number, label in enumerate(dict.fromkeys(timing.label for timing in sketched)):
        line = [timing for timing in sketched if timing.label == label]
        style = ("-", "--", "-.", ":")[number // 10 % 4]
        panel.plot([t.ratio for t in line], [t.noise for t in line], style, marker=".", linewidth=1, label=label)
    front = pareto_front([(timing.ratio, timing.noise) for timing in sketched], larger_is_better=False)
    panel.step(*zip(*front, strict=True), where="post", color="black", linewidth=2.5, alpha=0.3)
    panel.axvline(1.0, color="grey", linewidth=0.8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("time: compression and gradient / exact product")
    panel.set_ylabel("noise / signal of the weight gradient")
    panel.set_title(f"{title} (thick: the frontier)", fontsize="medium")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    write_figure(figure, path)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Write and print the table.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--dataset", default="ogbn-arxiv", help="as in benchmarks/ogbn_arxiv.py")
    parser.add_argument("--root", default="data", help="folder with the data sets")
    parser.add_argument("--layers", type=int, default=6, help="GCN2 convolutions; the last one is looked at")
    parser.add_argument("--hidden", type=int, default=64, help="hidden channels")
    parser.add_argument("--epoch", type=int, default=20, help="when to look")
    parser.add_argument(
        "--sketch", nargs="+", default=FAMILIES_OF_ROWS, help="families, as in benchmarks/ogbn_arxiv.py"
    )
    parser.add_argument("--codec", nargs="+", default=["fp32", "int2"], help="codecs")
    parser.add_argument("--center", nargs="+", choices=("on", "off"), default=["on"], help="subtract the column means")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.5, 0.2, 0.1, 0.05, 0.02], help="shares of rows")
    parser.add_argument("--repetitions", type=int, default=9, help="timed rounds")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds after which a way is not repeated")
    parser.add_argument(
        "--max-entries",
        type=float,
        default=1e9,
        help="leave out gaussian and rademacher where S has more entries: each takes some nanoseconds, twice",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and dropout")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--out", default="runs/compute", help="folder for results")
    given = parser.parse_args(argv)
    try:
        configs = [
            (sketch, RMMConfig(rate=rate, sketch=parse_sketch(sketch), codec=codec, center=center == "on"))
            for sketch, codec, center, rate in itertools.product(given.sketch, given.codec, given.center, given.rate)
        ]
        if min(given.epoch, given.layers, given.repetitions) < 1:
            raise ValueError("'epoch', 'layers' and 'repetitions' must be at least 1. Choose other values.")
        for module in ("tabulate", "matplotlib"):
            require(module)
        dataset = load(given.dataset, given.root).to(environment.resolve_device(given.device))
    except (BenchmarkError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    *_, seen = capture(dataset, [given.epoch], given.layers, given.hidden, given.seed)
    num_rows = seen.x.shape[0]
    taken = [
        (sketch, config)
        for sketch, config in configs
        if config.family.name not in _WHOLE or num_rows * config.sketch_size(num_rows) <= given.max_entries
    ]
    timings = time_all(seen, taken, given.repetitions, given.limit)
    where = environment.describe(dataset.x.device)
    title = f"{dataset.title}: {seen.layer} of GCN2, {given.layers} layers of {given.hidden}, epoch {given.epoch}"
    notes = [
        f"{num_rows:,} x {seen.x.shape[1]} -> {seen.y.shape[1]}, fp32; {where['device']}, {where['threads']} threads, "
        f"torch {where['packages']['torch']}; {given.repetitions} rounds."
    ]
    if len(taken) < len(configs):
        notes.append(
            f"Left out: {len(configs) - len(taken)} settings whose S has more than {given.max_entries:g} entries."
        )
    if dataset.features_are_stand_ins:
        notes.append("The features are stand-ins, not OGB's.")
    text = f"**{title}**\n\n{format_table(timings)}\n\n{' '.join(notes)}\n"
    out = Path(given.out)
    write_text(out / "table.md", text)
    records = {"where": where, "timings": [asdict(timing) for timing in timings]}
    write_text(out / "compute.json", json.dumps(records, indent=1) + "\n")
    draw(timings, out / "compute.png", title)
    print(f"\n{text}\nWrote table.md, compute.json and compute.png in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
