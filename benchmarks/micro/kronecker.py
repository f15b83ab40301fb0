#!/usr/bin/env python3
"""Tensor-product sketches beside the others at equal size: noise and time for the layers of a transformer.

    python benchmarks/micro/kronecker.py --data-dir DIR            # GLUE's TSV files; --task and --model as in glue.py
    python benchmarks/micro/kronecker.py --steps 10                # made-up sentences, seconds

Fine-tunes a small RoBERTa, takes the input X of several layers and the gradient Y of their outputs, and computes
E|G - Y^T X|^2 / |Y^T X|^2 in closed form, centred, for sketches of the same number of rows, k: the product of k_1 and
k_2 that is next below the rate.  "outer" and "inner" reduce one side alone, to a k of their own at or below that.
Padding is sketched like any row, but for the column with a row mask.  Times are of compressing X in forward and
forming the gradient in backward, over that of the exact product.  Writes table.md and kronecker.json into --out.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.harness.files import write_text

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.measure import stopwatch
from benchmarks.harness.script import parser_of
from benchmarks.micro.captured_text import CapturedLayer, capture_layers
from benchmarks.text.data import encode, load
from benchmarks.text.models import open_model
from benchmarks.text.synthetic import write_task
from benchmarks.text.tasks import TASKS
from rmm_gnn import KroneckerSketch, RMMConfig, draw_seed
from rmm_gnn.compression import compress, weight_grad
from rmm_gnn.diagnostics import rmm_variance
from rmm_gnn.sketches import Sketch, get_sketch

LAYERS = r".*(query|intermediate\.dense|layer\.\d+\.output\.dense)\.weight"
MASKED = "count_sketch, row mask"
OTHERS = ("count_sketch", MASKED, "gaussian", "rademacher", "row_sampling")
PRODUCTS = {"kronecker": "both", "kronecker, outer": "outer", "kronecker, inner": "inner"}
EXACT = "exact product"


@dataclass(frozen=True)
class Point:
    """One sketch of one layer's input.

    Attributes:
        layer: Name of the weight.
        outer: n, sequences.
        inner: L, tokens of each.
        rate: Share of the rows asked for.
        sketch: Which.
        size: k.
        noise: E|G - Y^T X|^2 / |Y^T X|^2.
    """

    layer: str
    outer: int
    inner: int
    rate: float
    sketch: str
    size: int
    noise: float


def sketches_for(inner: int, num_rows: int, rate: float) -> dict[str, tuple[Sketch, int]]:
    """Families and their sizes: that of the tensor product for all that can have it."""
    products = {name: KroneckerSketch(inner_rows=inner, reduce=reduce) for name, reduce in PRODUCTS.items()}
    size = products["kronecker"].admissible_size(num_rows, max(1, round(rate * num_rows)))
    found: dict[str, tuple[Sketch, int]] = {
        name: (family, family.admissible_size(num_rows, size)) for name, family in products.items()
    }
    return found | {name: (get_sketch(name.partition(",")[0]), size) for name in OTHERS}


def measure(seen: CapturedLayer, rates: Sequence[float]) -> Iterator[Point]:
    """Yield the noise of every sketch at every rate."""
    (outer, inner), rows = seen.mask.shape, seen.mask.numel()
    x, y = (tensor.reshape(rows, -1) for tensor in (seen.x, seen.y))
    marks = seen.mask.flatten()
    signal = float((x.T @ y).double().square().sum())
    for rate in rates:
        for name, (family, size) in sketches_for(inner, rows, rate).items():
            parts = (x[marks], y[marks]) if name == MASKED else (x, y)
            noise = float(rmm_variance(*parts, RMMConfig(size=size, sketch=family)))
            yield Point(seen.name, outer, inner, rate, name, size, noise / signal if signal else float("nan"))


def time_all(seen: CapturedLayer, rate: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of a layer's compression and gradient in each round, interleaved, after one round that does not count."""
    rows = seen.mask.numel()
    x, y = (tensor.reshape(rows, -1).contiguous() for tensor in (seen.x, seen.y))
    numbers = seen.mask.flatten().nonzero().squeeze(1).to(torch.int32)

    def gradient(family: Sketch, size: int, selected: Tensor | None) -> Tensor:
        config, seed = RMMConfig(size=size, sketch=family), draw_seed(x)
        kept = compress(x, config, seed, rows=selected)
        return weight_grad(y, kept, config, seed, num_columns=x.shape[1], dtype=x.dtype, rows=selected)[0]

    calls: dict[str, Callable[[], Tensor]] = {EXACT: lambda: y.T @ x}
    for name, (family, size) in sketches_for(seen.mask.shape[1], rows, rate).items():
        selected = numbers if name == MASKED else None
        calls[name] = lambda family=family, size=size, selected=selected: gradient(family, size, selected)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in tqdm(range(rounds + 1), desc="rounds", file=sys.stderr):
        for name, call in calls.items():
            with stopwatch(x.device, seconds[name]):
                call()
    return {name: values[1:] for name, values in seconds.items()}


def format_noise(points: Sequence[Point]) -> str:
    """Markdown: a row for each layer and rate, a column for each sketch; in brackets a k that is not the row's."""
    groups: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        groups.setdefault((point.layer, point.rate), []).append(point)
    body = []
    for (layer, rate), group in groups.items():
        size = group[0].size
        cells = [f"{point.noise:.3g}" + ("" if point.size == size else f" (k {point.size})") for point in group]
        body.append([layer, f"{group[0].outer} x {group[0].inner}", f"{rate:g}", size, *cells])
    headers = ["layer", "n x L", "rate", "k", *(point.sketch for point in next(iter(groups.values())))]
    return require("tabulate").tabulate(body, headers, tablefmt="github", disable_numparse=True)


def summary(points: Sequence[Point]) -> str:
    """One sentence for each tensor product: its noise over that of the count sketch, times k over k."""
    others = {(point.layer, point.rate): point for point in points if point.sketch == "count_sketch"}
    lines = []
    for name in PRODUCTS:
        found = [(point, others[point.layer, point.rate]) for point in points if point.sketch == name]
        ratios = sorted(ours.noise * ours.size / (other.noise * other.size) for ours, other in found if other.noise > 0)
        if ratios:
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}"
            lines.append(f"{name}: {spread}, of {len(ratios)} cases.")
        else:
            lines.append(f"{name}: no layer has a gradient.")
    return "Noise times k, over that of the count sketch:\n\n" + "\n".join(f"- {line}" for line in lines)


def format_times(seconds: dict[str, list[float]], layer: str, rate: float) -> str:
    """Markdown: medians in milliseconds, and over that of the exact product."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    body = [[name, f"{1e3 * value:.2f}", f"{value / medians[EXACT]:.2f}"] for name, value in medians.items()]
    headers = [f"gradient of {layer}, rate {rate:g}", "median [ms]", "time / exact"]
    return require("tabulate").tabulate(body, headers, tablefmt="github", disable_numparse=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Write and print the tables.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--data-dir", help="folder with GLUE's TSV files; made-up sentences without")
    parser.add_argument("--task", default="mrpc", choices=sorted(TASKS), help="what to train on")
    parser.add_argument("--model", default="tiny", help="tiny, a folder or a hub name")
    parser.add_argument("--layers", default=LAYERS, help="regular expression for names of weights")
    parser.add_argument("--steps", type=int, default=100, help="training steps before the one that is looked at")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences")
    parser.add_argument("--lr", type=float, default=3e-4, help="of AdamW")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.5, 0.2, 0.1], help="shares of rows")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds, at the last rate")
    parser.add_argument("--threads", type=int, help="of PyTorch on CPU; its own choice without")
    parser.add_argument("--seed", type=int, default=0, help="of head, batches and dropout")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--out", default="runs/kronecker", help="folder for results")
    given = parser.parse_args(argv)
    try:
        for rate in given.rate:
            RMMConfig(rate=rate)
        if min(given.steps, given.batch_size, given.rounds) < 1:
            raise ValueError("'steps', 'batch-size' and 'rounds' must be at least 1. Choose other values.")
        require("tabulate")
        device = environment.resolve_device(given.device)
        if given.threads:
            torch.set_num_threads(given.threads)
        with tempfile.TemporaryDirectory() as scratch:
            if given.data_dir is None:
                write_task(given.task, Path(scratch))
            data = load(given.task, given.data_dir or scratch)
        source = open_model(given.model, data, None)
        encoded = encode(data.task, data.train, source.tokenizer, source.max_length)
        layers = capture_layers(
            source, data.task, encoded, steps=given.steps, batch_size=given.batch_size, lr=given.lr,
            layers=given.layers, seed=given.seed, device=device,
        )  # fmt: skip
    except (BenchmarkError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    points = [point for seen in tqdm(layers, desc="layers", file=sys.stderr) for point in measure(seen, given.rate)]
    timed = max(layers, key=lambda seen: seen.x[0].numel())
    seconds = time_all(timed, given.rate[-1], given.rounds)
    words = "made-up sentences" if given.data_dir is None else given.task
    title = f"{source.title}, {words}, after {given.steps} steps of {given.batch_size}"
    share = float(layers[0].mask.float().mean())
    text = (
        f"**{title}**\n\nNoise to signal of the weight gradient, centred; {100 * share:.0f} % of the rows are tokens, "
        f"the rest is padding.\n\n{format_noise(points)}\n\n{summary(points)}\n\n"
        f"{format_times(seconds, timed.name, given.rate[-1])}\n"
    )
    out = Path(given.out)
    write_text(out / "table.md", text)
    records = {
        "where": environment.describe(device),
        "title": title,
        "share_of_tokens": share,
        "points": [asdict(point) for point in points],
        "timed_layer": timed.name,
        "seconds": seconds,
    }
    write_text(out / "kronecker.json", json.dumps(records, indent=1) + "\n")
    print(f"\n{text}\nWrote table.md and kronecker.json in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
