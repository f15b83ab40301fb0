#!/usr/bin/env python3
"""Whether a learning rate that follows the sketch's noise pays: a small network on scikit-learn's digits.

    python benchmarks/micro/noise_lr.py                                   # plain SGD
    python benchmarks/micro/noise_lr.py --optimizer adam --lr 1e-4 1e-3 1e-2

Trains exactly, with sketches at a fixed learning rate, and with sketches and ``NoiseLR``, from the same weights and
batches, for every base rate.  The table has test accuracy and final training loss, means over the seeds with the 95 %
interval of the accuracy's difference to exact training at the same base rate.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.script import parser_of
from rmm_gnn import NoiseLR, RMMConfig, convert_to_rmm

METHODS = ("exact", "fixed", "NoiseLR")
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
_TRAINED = 1000  # of 1797 digits; the others test


def digits() -> tuple[Tensor, Tensor]:
    """Standardised pixels [1797, 64] and labels [1797]."""
    data = require("sklearn.datasets").load_digits()
    x = torch.tensor(data.data, dtype=torch.float32)
    return (x - x.mean(0)) / (x.std(0) + 1e-6), torch.tensor(data.target)


def train(
    x: Tensor, y: Tensor, method: str, arguments: argparse.Namespace, lr: float, seed: int
) -> tuple[float, float]:
    """Test accuracy in percent, and the training loss at the end."""
    torch.manual_seed(seed)
    order = torch.randperm(len(x))
    fit, test = order[:_TRAINED], order[_TRAINED:]
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    if method != "exact":
        convert_to_rmm(model, RMMConfig(rate=arguments.rate))
    optimizer = OPTIMIZERS[arguments.optimizer](model.parameters(), lr=lr)
    scheduler = NoiseLR(optimizer, model, every=5) if method == "NoiseLR" else None
    batches = torch.Generator().manual_seed(seed)
    for _ in range(arguments.epochs):
        for batch in fit[torch.randperm(_TRAINED, generator=batches)].split(arguments.batch):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    model.eval()
    with torch.no_grad():
        accuracy = float((model(x[test]).argmax(1) == y[test]).float().mean())
        return 100 * accuracy, float(F.cross_entropy(model(x[fit]), y[fit]))


def _difference(values: Sequence[float]) -> str:
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:+.2f}"
    half = require("scipy.stats").t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default="sgd", help="what the rate is for")
    parser.add_argument("--lr", type=float, nargs="+", default=[0.05, 0.2, 0.5, 1.0], help="base rates")
    parser.add_argument("--rate", type=float, default=0.05, help="share of rows kept")
    parser.add_argument("--batch", type=int, default=250, help="rows of a step")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the data")
    parser.add_argument("--runs", type=int, default=10, help="seeds")
    given = parser.parse_args(argv)
    try:
        RMMConfig(rate=given.rate)
        if min(given.batch, given.epochs, given.runs) < 1 or min(given.lr) <= 0:
            raise ValueError("'batch', 'epochs', 'runs' and 'lr' must be positive. Choose other values.")
        tabulate = require("tabulate").tabulate
        x, y = digits()
    except (BenchmarkError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = []
    for lr in given.lr:
        found: dict[str, list[tuple[float, float]]] = {}
        for method in METHODS:
            seeds = tqdm(range(given.runs), desc=f"lr {lr:g} {method}", file=sys.stderr, leave=False)
            found[method] = [train(x, y, method, given, lr, seed) for seed in seeds]
            accuracy, loss = (statistics.fmean(values) for values in zip(*found[method], strict=True))
            pairs = zip(found[method], found["exact"], strict=True)
            difference = "" if method == "exact" else _difference([ours[0] - theirs[0] for ours, theirs in pairs])
            rows.append([f"{lr:g}", method, f"{accuracy:.2f}", difference, f"{loss:.4f}"])
    print(f"{given.optimizer}, rate {given.rate:g}, {given.runs} seeds\n")
    headers = ["base lr", "sketches, rate", "test accuracy [%]", "difference to exact", "training loss"]
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
