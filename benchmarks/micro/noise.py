#!/usr/bin/env python3
"""Noise against bytes: what every sketch family, codec and centring adds to the weight gradients of a trained GCN2.

    python benchmarks/micro/noise.py --root DIR --epochs 5 60        # the ogbn-arxiv graph, early and late
    python benchmarks/micro/noise.py --dataset digits --layers 2     # embedded data, seconds

Trains the baseline, takes the input X of the first and the last convolution's weight and the gradient Y of its output
at the given epochs, and computes E|G - Y^T X|^2 / |Y^T X|^2 in closed form; the rounding of the int codecs from a
sample of sketch rows.  ``importance_sampling`` draws rows by the gradient's norms one epoch before; at epoch 1 there
are none.  Writes table.md, noise.json and noise.png into --out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.config import resolve
from benchmarks.harness.datasets import load
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.methods import parse_sketch
from benchmarks.harness.task import Task
from benchmarks.harness.train import build_model
from rmm_gnn import RMMConfig
from rmm_gnn.codecs import get_codec
from rmm_gnn.control_variates import column_means
from rmm_gnn.diagnostics import sgd_variance
from rmm_gnn.diagnostics.products import Product, WatchProducts
from rmm_gnn.diagnostics.variance import rounding_variance
from rmm_gnn.sketches import FAMILIES

# Sketch rows from which rounding is measured: making a row of a dense sketch costs a pass over X.
_SAMPLED_ROWS = {"count_sketch": 4096, "row_sampling": 4096, "norm_sampling": 4096, "importance_sampling": 4096}
_FEW_ROWS = 64


@dataclass(frozen=True)
class Point:
    """One way to keep the input of one layer, and its noise.

    Attributes:
        epoch: When the layer was looked at.
        layer: Name of the weight.
        sketch: Family, with settings.
        center: Whether the column means are subtracted first.
        codec: How the sketch is stored.
        rate: Share of rows kept.
        share: Bytes kept over those of X.
        noise: E|G - Y^T X|^2 / |Y^T X|^2.
    """

    epoch: int
    layer: str
    sketch: str
    center: bool
    codec: str
    rate: float
    share: float
    noise: float

    @property
    def label(self) -> str:
        return f"{self.sketch} {self.codec}" + ("" if self.center else ", uncentred")


def capture(
    dataset: NodeDataset, epochs: Sequence[int], layers: int, hidden: int, seed: int
) -> Iterator[tuple[int, str, Tensor, Tensor, Tensor | None]]:
    """Train; at every epoch in `epochs`, yield what is known of the first and the last convolution.

    The epoch, the weight's name, X, Y, and the norms that the rows of Y had an epoch before.
    """
    given = {"method": ("baseline",), "layers": layers, "hidden": hidden, "epochs": max(epochs), "seed": seed}
    run = resolve({"dataset": dataset.name, **given}).expand("", str(dataset.x.device))[0]
    task = Task.of(dataset, dataset.split_for(seed).to(dataset.x.device))
    model = build_model(run, dataset.x.shape[1], dataset.num_classes, task).train()
    watched = {model.get_parameter(f"convs.{index}.weight1"): f"convs.{index}" for index in sorted({0, layers - 1})}
    optimizer = torch.optim.Adam(model.parameters(), lr=run.lr)
    norms: dict[str, Tensor] = {}
    for epoch in tqdm(range(1, max(epochs) + 1), desc="training", unit="epoch", file=sys.stderr):
        seen: list[tuple[Product, list[Tensor]]] = []
        optimizer.zero_grad(set_to_none=True)
        if epoch in epochs or epoch + 1 in epochs:
            with WatchProducts(watched, partial(_note, seen)):
                loss = task.loss_fn(model(*task.inputs))
        else:
            loss = task.loss_fn(model(*task.inputs))
        loss.backward()
        for product, gradient in seen:
            if epoch in epochs:
                yield epoch, product.name, product.rows, gradient[0], norms.get(product.name)
            norms[product.name] = torch.linalg.vector_norm(gradient[0], dim=1)
        nn.utils.clip_grad_norm_(model.parameters(), run.clip)
        optimizer.step()


def _note(seen: list[tuple[Product, list[Tensor]]], product: Product) -> None:
    gradient: list[Tensor] = []
    product.out.register_hook(gradient.append)
    seen.append((product, gradient))


def measure(
    x: Tensor,
    y: Tensor,
    epoch: int,
    layer: str,
    sketches: Sequence[str],
    codecs: Sequence[str],
    rates: Sequence[float],
    row_norms: Tensor | None = None,
) -> Iterator[Point]:
    """Yield the noise of every combination for one layer."""
    signal = float((x.T @ y).double().square().sum())
    whole = x.shape[1] * x.element_size() * x.shape[0]
    means = column_means(x, RMMConfig().workspace_bytes)
    seed = torch.zeros((), dtype=torch.int64, device=x.device)
    for sketch in sketches:
        family = parse_sketch(sketch)
        norms = row_norms if family.reads_row_norms else None
        for mean in (means, None):
            for rate in rates:
                size = RMMConfig(rate=rate).sketch_size(x.shape[0])
                variance = family.variance(x, y, size, mean=mean, row_norms=norms)
                assert variance is not None
                for codec in codecs:
                    config = RMMConfig(rate=rate, sketch=family, codec=codec, center=mean is not None)
                    rounding = 0.0
                    if get_codec(codec).rounds_at_random:
                        rows = _SAMPLED_ROWS.get(family.name, _FEW_ROWS)
                        rounding = float(rounding_variance(x, y, config, seed, mean, rows, norms))
                    share = config.saved_bytes(*x.shape, x.dtype) / whole
                    noise = (float(variance) + rounding) / signal
                    yield Point(epoch, layer, sketch, mean is not None, codec, rate, share, noise)


def format_table(points: Sequence[Point], data_noise: dict[tuple[int, str], float]) -> str:
    """Markdown: a row for each way to keep X, its share of the bytes and its noise for every layer and epoch."""
    places = list(dict.fromkeys((point.epoch, point.layer) for point in points))
    rows: dict[tuple[str, float], list[Point]] = {}
    for point in points:
        rows.setdefault((point.label, point.rate), []).append(point)
    body = [
        [label, f"{rate:g}", f"{100 * group[0].share:.2f}", *(f"{point.noise:.2g}" for point in group)]
        for (label, rate), group in sorted(rows.items(), key=lambda item: item[1][0].share)
    ]
    body.append(["noise of the data, (9)", "", "", *(f"{data_noise[place]:.2g}" for place in places)])
    headers = ["kept", "rate", "bytes of X [%]", *(f"{layer}, epoch {epoch}" for epoch, layer in places)]
    return require("tabulate").tabulate(body, headers, tablefmt="github", disable_numparse=True)


def draw(points: Sequence[Point], path: Path, title: str) -> None:
    """One panel for each layer and epoch, one line for each family and codec, and the frontier of all."""
    from benchmarks.harness.frontier import pareto_front

    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    places = list(dict.fromkeys((point.epoch, point.layer) for point in points))
    figure, panels = plt.subplots(1, len(places), figsize=(5 * len(places), 6), squeeze=False, layout="constrained")
    families = list(dict.fromkeys(point.sketch for point in points))
    codecs = list(dict.fromkeys(point.codec for point in points))
    styles = dict(zip(codecs, itertools.cycle(("-", "--", "-.", ":")), strict=False))
    handles = {}
    for place, panel in zip(places, panels[0], strict=True):
        here = [point for point in points if (point.epoch, point.layer) == place]
        for label in dict.fromkeys(point.label for point in here if point.center):
            line = [point for point in here if point.label == label]
            colour = f"C{families.index(line[0].sketch)}"
            (handle,) = panel.plot(
                [point.share for point in line], [point.noise for point in line], color=colour,
                linestyle=styles[line[0].codec], marker=".", linewidth=1,
            )  # fmt: skip
            handles[label] = handle
        front = pareto_front([(point.share, point.noise) for point in here], larger_is_better=False)
        panel.step(*zip(*front, strict=True), where="post", color="black", linewidth=2.5, alpha=0.3)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("bytes kept / bytes of X")
        panel.set_title(f"{place[1]}, epoch {place[0]}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("noise / signal of the weight gradient")
    figure.suptitle(f"{title} (centred sketches; thick: the frontier of all)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Write and print the table.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = argparse.ArgumentParser(
        description=str(__doc__).split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--dataset", default="ogbn-arxiv", help="as in benchmarks/ogbn_arxiv.py")
    parser.add_argument("--root", default="data", help="folder with the data sets")
    parser.add_argument("--layers", type=int, default=6, help="GCN2 convolutions")
    parser.add_argument("--hidden", type=int, default=64, help="hidden channels")
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 60], help="when to look")
    parser.add_argument(
        "--sketch", nargs="+", default=sorted(FAMILIES), help="families, as in benchmarks/ogbn_arxiv.py"
    )
    parser.add_argument("--codec", nargs="+", default=["fp32", "int8", "int4", "int2", "int1"], help="codecs")
    parser.add_argument(
        "--rate", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1, 0.05, 0.02], help="shares of rows"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and dropout")
    parser.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    parser.add_argument("--out", default="runs/noise", help="folder for results")
    given = parser.parse_args(argv)
    try:
        for name in given.sketch:
            RMMConfig(sketch=parse_sketch(name))
        for codec in given.codec:
            get_codec(codec)
        for rate in given.rate:
            RMMConfig(rate=rate)
        if min(given.epochs) < 1 or given.layers < 1:
            raise ValueError("'epochs' and 'layers' must be at least 1. Choose other values.")
        for module in ("tabulate", "matplotlib"):
            require(module)
        dataset = load(given.dataset, given.root).to(environment.resolve_device(given.device))
    except (BenchmarkError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    points: list[Point] = []
    data_noise: dict[tuple[int, str], float] = {}
    for epoch, layer, x, y, norms in capture(dataset, given.epochs, given.layers, given.hidden, given.seed):
        data_noise[epoch, layer] = float(sgd_variance(x, y) / (x.T @ y).double().square().sum())
        found = measure(x, y, epoch, layer, given.sketch, given.codec, given.rate, norms)
        total = 2 * len(given.sketch) * len(given.rate) * len(given.codec)
        points += tqdm(found, total=total, desc=f"{layer}, epoch {epoch}", file=sys.stderr)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    title = f"{dataset.title}: GCN2, {given.layers} layers of {given.hidden}"
    stand_ins = "\n\nThe features are stand-ins, not OGB's." if dataset.features_are_stand_ins else ""
    text = f"**{title}**\n\n{format_table(points, data_noise)}{stand_ins}\n"
    (out / "table.md").write_text(text)
    records = {"where": environment.describe(dataset.x.device), "points": [asdict(point) for point in points]}
    (out / "noise.json").write_text(json.dumps(records, indent=1) + "\n")
    draw(points, out / "noise.png", title)
    print(f"\n{text}\nWrote table.md, noise.json and noise.png in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
