#!/usr/bin/env python3
"""What lean batch normalisation costs and the noise it brings, by codec and share of rows.

    python benchmarks/micro/norm.py                                    # 17716 x 64
    python benchmarks/micro/norm.py --rows 169343 --columns 256

The noise is that of the weight gradient *before* the norm in linear -> batch norm -> ReLU -> linear, after some steps
of exact training: E|dW - dW_exact|^2 / |dW_exact|^2.  Times are forward and backward of the norm, interleaved, medians,
as ratios to INT2 of every row.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.functional as lean
from benchmarks.harness import environment
from benchmarks.harness.accounting import row_bytes

SETTINGS = (("int2", 1.0), ("int1", 1.0), ("int2", 0.5), ("int2", 0.25), ("int2", 0.2), ("int2", 0.1))
CLASSES, STEPS, NOISE_ROWS = 10, 30, 4000

Norm = Callable[..., Tensor]


def noise(columns: int, settings: Sequence[tuple[str, float]], draws: int) -> list[float]:
    """Relative noise of the first weight's gradient for each setting."""
    generator = torch.Generator().manual_seed(0)
    randn = partial(torch.randn, generator=generator)
    x = randn(NOISE_ROWS, columns) @ randn(columns, columns) / columns**0.5 + 0.5
    labels = (torch.tanh(x @ randn(columns, columns) / columns**0.5) @ randn(columns, CLASSES)).argmax(1)
    first, last = randn(columns, columns) / columns**0.5, randn(CLASSES, columns) / columns**0.5
    leaves = [leaf.requires_grad_() for leaf in (first, torch.ones(columns), torch.zeros(columns), last)]

    def loss(norm: Norm) -> Tensor:
        hidden = norm(F.linear(x, leaves[0]), None, None, leaves[1], leaves[2], True)
        return F.cross_entropy(F.linear(hidden.relu(), leaves[3]), labels)

    optimizer = torch.optim.Adam(leaves, 1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss(F.batch_norm).backward()
        optimizer.step()
    (exact,) = torch.autograd.grad(loss(F.batch_norm), leaves[:1])
    found = []
    for codec, rate in settings:
        norms = [partial(lean.batch_norm, codec=codec, rate=rate, seed=seed) for seed in range(draws)]
        errors = [torch.autograd.grad(loss(norm), leaves[:1])[0] - exact for norm in norms]
        found.append(statistics.fmean(float(error.norm() / exact.norm()) ** 2 for error in errors))
    return found


def times(rows: int, columns: int, settings: Sequence[tuple[str, float]], repetitions: int) -> list[float]:
    """Median seconds of forward and backward for each setting."""
    x, gamma = torch.randn(rows, columns, requires_grad=True), torch.ones(columns, requires_grad=True)
    grad_output, taken = torch.randn(rows, columns), [[] for _ in settings]  # type: ignore[var-annotated]
    for _ in range(repetitions + 1):
        for (codec, rate), seconds in zip(settings, taken, strict=True):
            start = time.perf_counter()
            out = lean.batch_norm(x, None, None, gamma, training=True, codec=codec, rate=rate)
            torch.autograd.grad(out, (x, gamma), grad_output)
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds[1:]) for seconds in taken]  # the first one warms up


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=17716, help="rows of the timed input (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=64, help="channels (default: %(default)s)")
    parser.add_argument("--repetitions", type=int, default=9, help="timings of each (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=16, help="gradients for the noise (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads; unset: PyTorch's default")
    given = parser.parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    seconds = times(given.rows, given.columns, SETTINGS, given.repetitions)
    noises = noise(given.columns, SETTINGS, given.draws)
    machine = f"{environment.cpu_name()}, {torch.get_num_threads()} thread(s)"
    print(f"{given.rows} x {given.columns}, {machine}; INT2 of every row: ", end="")
    print(f"{1e3 * seconds[0]:.1f} ms\n\n| norm | bytes a row | noise | time |\n|---|---|---|---|")
    for (codec, rate), took, size in zip(SETTINGS, seconds, noises, strict=True):
        kept = rate * row_bytes(codec, given.columns)
        print(f"| {codec}, rate {rate:g} | {kept:g} | {size:.3f} | {took / seconds[0]:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
