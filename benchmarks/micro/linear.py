#!/usr/bin/env python3
"""Time and memory of one linear layer, forward and backward: exact, RMM at several rates, and its peers.

    python benchmarks/micro/linear.py                                # of a graph, of a transformer, narrow, small
    python benchmarks/micro/linear.py --shape 169343x256x256 --rate 0.1 --codec fp32 int8
    python benchmarks/micro/linear.py --shape 2000x256x256 --max-entries 1e9 --sketch gaussian count_sketch

All run in one process and take turns round by round; the tests of what is timed run first. The table shows first how
many times as long as torch.nn.Linear of the same round each takes (median, 20 and 80 % quantiles). Kept: what forward
leaves allocated besides its output, for an input that nobody else keeps. Peak: the highest point of the step, both
above what was there before. Rows of the paper's method are left out where S has more than --max-entries entries.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.script import guarded, parser_of
from benchmarks.micro import command, gate, ways
from benchmarks.micro.timing import SHORT_S, Spread, interleaved, ratios, spread
from rmm_gnn.diagnostics.peak import measure_step

SHAPES = ("169343x256x256", "16384x768x3072", "131072x128x40", "128x64x64")
TESTS = ("tests/autograd/test_rmm_linear.py", "tests/kernels", "tests/baselines/exact/test_linear.py")


def measure(shape: tuple[int, ...], given: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Time every way to run the layer; returns one record each, times in seconds."""
    rows, columns, outputs = shape
    torch.manual_seed(0)
    linear = nn.Linear(columns, outputs, device=device)
    x = torch.randn(rows, columns, device=device, requires_grad=True)
    grad = torch.randn(rows, outputs, device=device)
    layers = ways.peers(linear)
    layers |= ways.papers(linear, rows, given.rate, given.max_entries)
    layers |= ways.sketched(linear, given.sketch, given.rate, given.codec, given.backend)

    def step(layer: ways.Layer) -> None:
        linear.zero_grad(set_to_none=True)
        x.grad = None
        layer(x).backward(grad)

    memory = {name: _memory(layer, x, grad, device) for name, layer in layers.items()}
    calls = {name: lambda layer=layer: step(layer) for name, layer in layers.items()}
    (short,) = interleaved({ways.LINEAR: calls[ways.LINEAR]}, 1, device)[ways.LINEAR]
    repeat = max(1, round(SHORT_S / short))
    seconds = interleaved(calls, given.repetitions, device, repeat=repeat)
    return [
        {
            "shape": "x".join(map(str, shape)),
            "layer": name,
            "ratio": ratios(seconds[name], seconds[ways.LINEAR])._asdict(),
            "seconds": seconds[name],
            **memory[name],
        }
        for name in layers
    ]


def _memory(layer: ways.Layer, x: Tensor, grad: Tensor, device: torch.device) -> dict[str, Any]:
    """What one step keeps and allocates where its input is a result that nobody else keeps, as in a network."""

    def backward(out: Tensor | None) -> None:
        assert out is not None
        out.backward(grad)

    layer(x).backward(grad)  # libraries allocate their workspaces, and gradients are there
    found = measure_step(lambda: layer(x.clone()), backward, [device])
    out_bytes = grad.numel() * grad.element_size()
    kept = None if found.held_bytes is None else found.held_bytes - out_bytes
    return {"kept_bytes": kept, "peak_bytes": found.peak_bytes}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it as JSON where ``--out`` names a file.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="ROWSxCOLUMNSxOUTPUTS of layers")
    parser.add_argument("--sketch", nargs="+", default=["count_sketch"], help="families")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.5, 0.2, 0.1, 0.05], help="shares of rows kept")
    parser.add_argument("--codec", nargs="+", default=["fp32"], help="how the sketch is stored")
    parser.add_argument("--max-entries", type=float, default=3e7, help="of the S that the paper's method makes whole")
    command.add_flags(parser)
    return guarded(lambda: _run(parser.parse_args(argv)), "interrupted")


def _run(given: argparse.Namespace) -> int:
    device = environment.resolve_device(given.device)
    shapes = [command.parse_shape(text, "ROWSxCOLUMNSxOUTPUTS") for text in given.shape]
    command.prepare(given)
    tabulate = require("tabulate").tabulate
    try:  # before the tests run
        small = nn.Linear(8, 4, device=device)
        for layer in ways.sketched(small, given.sketch, given.rate, given.codec, given.backend).values():
            layer(torch.ones(64, 8, device=device)).sum().backward()
    except (ImportError, TypeError, ValueError) as error:
        raise BenchmarkError(str(error)) from error
    warning = gate.check(TESTS, given.no_gate, given.tested_in)
    where = environment.describe(device)
    records = []
    for shape in shapes:
        records += (found := measure(shape, given, device))
        rows, columns, outputs = shape
        print(
            f"{rows:,} x {columns} -> {outputs}, fp32, forward + backward; {where['device']}, {where['threads']} "
            f"threads, torch {where['packages']['torch']}; {given.repetitions} rounds\n"
        )
        if warning:
            print(f"{warning}\n")
        headers = ["layer", "time / Linear", "time [ms]", "kept [MiB]", "peak [MiB]"]
        print(tabulate([_row(record) for record in found], headers, tablefmt="github", disable_numparse=True) + "\n")
    command.write(given, where, records)
    return 0


def _row(record: dict[str, Any]) -> list[str]:
    ratio = Spread(**record["ratio"])
    memory = [record[name] for name in ("kept_bytes", "peak_bytes")]
    return [
        record["layer"],
        ratio.format(2),
        spread(record["seconds"]).format(2, 1e3),
        *("-" if value is None else f"{value / 2**20:.2f}" for value in memory),
    ]


if __name__ == "__main__":
    sys.exit(main())
