#!/usr/bin/env python3
"""Time and kept bytes of one linear layer, forward and backward: exact, RMM at several rates, and the paper's way.

    python benchmarks/micro/linear.py                                # 169343 x 256 -> 256, the ogbn-arxiv layer
    python benchmarks/micro/linear.py --sketch gaussian count_sketch --rate 0.1 --repetitions 3
    python benchmarks/micro/linear.py --paper --repetitions 1        # S whole: 11.5 GB at the default size

All run in one process, interleaved round by round, on one set of tensors; the table shows first the ratio to
torch.nn.Linear, then medians with the 20th and 80th percentile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.measure import measure_saved_bytes, stopwatch
from benchmarks.harness.script import parser_of
from rmm_gnn import RMMConfig, rmm_linear

EXACT = "torch.nn.Linear"
PAPER = "paper's Gaussian, S whole"
Layer = Callable[[Tensor], Tensor]


class _PaperGaussian(torch.autograd.Function):
    """Algorithm 1 as published: S [B, k] is made whole in forward and made again in backward.

    S is redrawn at every call here, as the algorithm says.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rate: float) -> Tensor:
        ctx.size = max(1, round(rate * x.shape[0]))
        ctx.seed = int(torch.randint(2**62, ()))
        ctx.save_for_backward(weight, _whole_gaussian(x, ctx.size, ctx.seed).T @ x)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weight, x_sketch = ctx.saved_tensors
        (grad,) = grad_outputs
        grad_sketch = _whole_gaussian(grad, ctx.size, ctx.seed).T @ grad
        return grad @ weight, grad_sketch.T @ x_sketch, grad.sum(0), None


def _whole_gaussian(like: Tensor, size: int, seed: int) -> Tensor:  # [B, N] -> [B, k]
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape[0], size, device=like.device, generator=generator).mul_(size**-0.5)


def layers(linear: nn.Linear, sketches: Sequence[str], rates: Sequence[float], paper: bool) -> dict[str, Layer]:
    """Every way to run the layer, by name; all share the weights of ``linear``."""
    named: dict[str, Layer] = {EXACT: linear}
    for sketch in sketches:
        for rate in rates:
            config = RMMConfig(rate=rate, sketch=sketch)
            named[f"{sketch} {rate:g}"] = lambda x, c=config: rmm_linear(x, linear.weight, linear.bias, config=c)
    if paper:
        for rate in rates:
            named[f"{PAPER}, {rate:g}"] = lambda x, r=rate: _PaperGaussian.apply(x, linear.weight, linear.bias, r)
    return named


def measure(arguments: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Time every layer ``repetitions`` times after one warm-up round; returns one record a layer, times in seconds."""
    torch.manual_seed(0)
    linear = nn.Linear(arguments.columns, arguments.outputs, device=device)
    x = torch.randn(arguments.rows, arguments.columns, device=device, requires_grad=True)
    grad = torch.randn(arguments.rows, arguments.outputs, device=device)
    named = layers(linear, arguments.sketch, arguments.rate, arguments.paper)
    kept = {
        name: measure_saved_bytes(nn.Module(), lambda layer=layer: layer(x).sum(), [linear.weight]).total
        for name, layer in named.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in named}
    for _ in range(arguments.repetitions):
        for name, layer in named.items():
            linear.zero_grad(set_to_none=True)
            x.grad = None
            with stopwatch(device, seconds[name]):
                layer(x).backward(grad)
    exact = statistics.median(seconds[EXACT])
    return [
        {
            "layer": name,
            "ratio": statistics.median(seconds[name]) / exact,
            "seconds": seconds[name],
            "kept_bytes": kept[name],
        }
        for name in named
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, and write it as JSON where ``--out`` names a file.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--rows", type=int, default=169343, help="B")
    parser.add_argument("--columns", type=int, default=256, help="N, features in")
    parser.add_argument("--outputs", type=int, default=256, help="M, features out")
    parser.add_argument("--sketch", nargs="+", default=["count_sketch"], help="families")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.5, 0.2, 0.1, 0.05], help="shares of rows kept")
    parser.add_argument("--paper", action="store_true", help="also the published method, S whole in memory")
    parser.add_argument("--repetitions", type=int, default=9, help="timed rounds")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    arguments = parser.parse_args(argv)
    try:
        device = environment.resolve_device(arguments.device)
        tabulate = require("tabulate").tabulate
        records = measure(arguments, device)
    except (BenchmarkError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    where = environment.describe(device)
    print(
        f"{arguments.rows:,} x {arguments.columns} -> {arguments.outputs}, fp32, forward + backward; "
        f"{where['device']}, {where['threads']} threads, torch {where['packages']['torch']}; "
        f"{arguments.repetitions} rounds\n"
    )
    headers = ["layer", "time / Linear", "median [ms]", "20 % - 80 % [ms]", "kept [MiB]"]
    print(tabulate([_row(record) for record in records], headers, tablefmt="github", disable_numparse=True))
    if arguments.out:
        settings = {name: value for name, value in vars(arguments).items() if name != "out"}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(
            json.dumps({"settings": settings, "environment": where, "layers": records}, indent=1) + "\n"
        )
    return 0


def _row(record: dict[str, Any]) -> list[str]:
    times_ms = sorted(1e3 * value for value in record["seconds"])
    low, high = times_ms[len(times_ms) // 5], times_ms[-1 - len(times_ms) // 5]
    return [
        record["layer"],
        f"{record['ratio']:.2f}",
        f"{statistics.median(times_ms):.1f}",
        f"{low:.1f} - {high:.1f}",
        f"{record['kept_bytes'] / 2**20:.2f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
