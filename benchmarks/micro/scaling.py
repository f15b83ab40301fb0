#!/usr/bin/env python3
"""How time and saved bytes of one linear layer grow with the rows and with the width: exact, and with a sketch.

    python benchmarks/micro/scaling.py --plot scaling.png --out scaling.json    # 1e3 to 1e6 rows, widths 32 to 1024
    python benchmarks/micro/scaling.py --sketch count_sketch gaussian --at-rows 1024

All run in one process and take turns round by round; the tests of what is timed run first. Time is that of forward and
backward, and that of sketching x alone, beside a copy of x: where x outgrows the caches, both rise faster than their
operations. The largest layer, 1e6 rows of 64 fp32 numbers, takes about 1.3 GiB on CPU. A dense sketch such as gaussian
has rate * B**2 random entries, so that its time is quadratic in the rows B; it is left out where S has more than
--max-entries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.measure import SavedStorages
from benchmarks.harness.script import guarded, parser_of
from benchmarks.micro import command, gate, power_law, scaling_plot, ways
from benchmarks.micro.scaling_curves import Sweep, curves, exponents
from benchmarks.micro.timing import Spread, interleaved, ratios, repeats, spread
from rmm_gnn import RMMConfig
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sketches.dense import EntrywiseSketch

TESTS = ("tests/autograd/test_rmm_linear.py", "tests/kernels", "tests/sketches/test_conformance.py")
ROWS = tuple(step * 10**power for power in (3, 4, 5) for step in (1, 2, 3, 5)) + (10**6,)
WIDTHS = (32, 64, 128, 256, 512, 1024)
ALONE = "sketch alone"
COPY = "copy of x"
Record = dict[str, Any]


def measure(rows: int, width: int, given: argparse.Namespace, device: torch.device) -> list[Record]:
    """Time every way to run a layer [B, N] -> [B, N] and every sketch of its input; one record each."""
    torch.manual_seed(0)
    linear = nn.Linear(width, width, device=device)
    x = torch.randn(rows, width, device=device, requires_grad=True)
    grad = torch.randn(rows, width, device=device)
    configs = _configs(given, rows)
    layers = {ways.LINEAR: linear, **ways.sketched(linear, list(configs), [given.rate], ["fp32"], given.backend)}

    def step(layer: ways.Layer) -> None:
        linear.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(grad)

    def saved_bytes(layer: ways.Layer) -> int:
        with SavedStorages(linear.parameters()) as saved:
            layer(x)
        return saved.total_bytes

    saved = {name: saved_bytes(layer) for name, layer in layers.items()}
    calls: dict[str, Callable[[], Any]] = {name: lambda layer=layer: step(layer) for name, layer in layers.items()}
    seed, matrix = draw_seed(x), x.detach()
    for name, config in configs.items():
        size = config.sketch_size(rows)
        calls[f"{name} {given.rate:g}, {ALONE}"] = lambda config=config, size=size: config.family.apply(
            matrix, seed, size, backend=given.backend
        )
    copy = torch.empty_like(matrix)
    calls[COPY] = lambda: copy.copy_(matrix)
    seconds = interleaved(calls, given.repetitions, device, repeat=repeats(calls, device))
    return [
        {
            "shape": f"{rows}x{width}x{width}",
            "layer": name,
            "ratio": ratios(seconds[name], seconds[ways.LINEAR])._asdict(),
            "seconds": seconds[name],
            "saved_bytes": saved.get(name),
        }
        for name in calls
    ]


def _configs(given: argparse.Namespace, rows: int) -> dict[str, RMMConfig]:
    """A configuration for each sketch, by its name, without dense ones of too many entries."""
    configs = {name: RMMConfig(rate=given.rate, sketch=name, backend=given.backend) for name in given.sketch}
    for config in configs.values():
        if config.family.depends_on_data or config.family.reads_shape:
            raise BenchmarkError(
                f"'sketch' must be drawn from the seed and the number of rows (got '{config.family.name}'). "
                "Leave out families that look at the data or at a grid of rows."
            )
    return {
        name: config
        for name, config in configs.items()
        if not isinstance(config.family, EntrywiseSketch) or config.sketch_size(rows) * rows <= given.max_entries
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables, and write JSON and a picture where ``--out`` and ``--plot`` name files.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="numbers of rows at --at-width")
    parser.add_argument("--width", type=int, nargs="+", default=WIDTHS, help="widths at --at-rows")
    parser.add_argument("--at-width", type=int, default=64, help="width while the rows grow")
    parser.add_argument("--at-rows", type=int, default=8192, help="rows while the width grows")
    parser.add_argument("--fit-rows", type=int, default=100_000, help="time is fitted from so many rows on")
    parser.add_argument("--fit-width", type=int, default=128, help="time is fitted from this width on")
    parser.add_argument("--sketch", nargs="+", default=["count_sketch"], help="families")
    parser.add_argument("--rate", type=float, default=0.1, help="share of rows kept")
    parser.add_argument("--max-entries", type=float, default=3e6, help="of a dense S")
    parser.add_argument("--plot", type=Path, help="picture (.png)")
    command.add_flags(parser)
    return guarded(lambda: _run(parser.parse_args(argv)), "interrupted")


def _run(given: argparse.Namespace) -> int:
    device = environment.resolve_device(given.device)
    command.prepare(given)
    sweeps = _sweeps(given)
    tabulate, tqdm = require("tabulate").tabulate, require("tqdm").tqdm
    require("scipy.stats")
    if given.plot:
        scaling_plot.check(given.plot)
    try:  # before the tests run
        small = nn.Linear(8, 4, device=device)
        for layer in ways.sketched(small, list(_configs(given, 1)), [given.rate], ["fp32"], given.backend).values():
            layer(torch.ones(64, 8, device=device)).sum().backward()
    except (ImportError, TypeError, ValueError) as error:
        raise BenchmarkError(str(error)) from error
    warning = gate.check(TESTS, given.no_gate, given.tested_in)
    where = environment.describe(device)
    shapes = dict.fromkeys(shape for sweep in sweeps for shape in sweep.layers)
    found = {
        shape: measure(*shape, given, device) for shape in tqdm(shapes, desc="measuring", unit="layer", file=sys.stderr)
    }
    drawn = list(curves(found, sweeps))
    title = (
        f"B rows of N numbers, N -> N, fp32; {where['device']}, {where['threads']} threads, "
        f"torch {where['packages']['torch']}; {given.repetitions} rounds"
    )
    print(f"{title}\n" + (f"\n{warning}\n" if warning else ""))
    for sweep, fixed in zip(sweeps, (f"width {given.at_width}", f"{given.at_rows:,} rows"), strict=True):
        headers = [f"{sweep.axis} at {fixed}", "layer", "time / Linear", "time [ms]", "saved [MiB]"]
        lines = [
            _row(size, record) for size, shape in zip(sweep.sizes, sweep.layers, strict=True) for record in found[shape]
        ]
        print(tabulate(lines, headers, tablefmt="github", disable_numparse=True) + "\n")
    print(tabulate(*exponents(drawn), tablefmt="github", disable_numparse=True))
    print(f"\n{_notes(given)}")
    if given.plot:
        scaling_plot.draw(drawn, given.plot, title + (f"\n{warning}" if warning else ""))
    fits = [
        {"layer": curve.layer, "of": curve.quantity, "in": curve.axis, **curve.law._asdict()}
        for curve in drawn
        if curve.law is not None
    ]
    command.write(given, where, [record for records in found.values() for record in records], fits=fits)
    return 0


def _sweeps(given: argparse.Namespace) -> tuple[Sweep, Sweep]:
    for name in ("rows", "width"):
        sizes = getattr(given, name)
        if min(sizes) < 1 or len(set(sizes)) < power_law.MIN_POINTS:
            listed = " ".join(map(str, sizes))
            raise BenchmarkError(
                f"'{name}' must be {power_law.MIN_POINTS} or more different positive numbers (got {listed}). Add some."
            )
    for name in ("at_rows", "at_width"):
        if getattr(given, name) < 1:
            raise BenchmarkError(f"'{name}' must be at least 1 (got {getattr(given, name)}). Choose more.")
    rows, widths = sorted(set(given.rows)), sorted(set(given.width))
    return (
        Sweep("rows", rows, [(size, given.at_width) for size in rows], given.fit_rows),
        Sweep("width", widths, [(given.at_rows, size) for size in widths], given.fit_width),
    )


def _notes(given: argparse.Namespace) -> str:
    """What the exponents are, and what to expect of them."""
    return (
        "Exponents with 95 % intervals, from least squares of the logarithms of medians, over the sizes behind them.\n"
        f"Time is fitted from {given.fit_rows:,} rows and from width {given.fit_width} on, where what every call costs "
        f"weighs less, or over the last {power_law.LAST}\nsizes where fewer than {power_law.MIN_POINTS} are so large; "
        "saved bytes over all. With a sketch and without, the output and the gradient of x\n"
        "are products of B N^2 operations. Those of sketching by count_sketch are linear in B and N, as a copy's are:\n"
        "the copy's exponents show what the caches add."
    )


def _row(size: int, record: Record) -> list[str]:
    saved = record["saved_bytes"]
    return [
        f"{size:,}",
        record["layer"],
        Spread(**record["ratio"]).format(2),
        spread(record["seconds"]).format(3, 1e3),
        "-" if saved is None else f"{saved / 2**20:.3f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
