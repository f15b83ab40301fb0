#!/usr/bin/env python3
"""Noise against bytes: what every sketch family, codec and centring adds to the weight gradients of a trained GCN2.

    python benchmarks/micro/noise.py --root DIR --epochs 5 60        # the ogbn-arxiv graph, early and late
    python benchmarks/micro/noise.py --dataset digits --layers 2     # embedded data, seconds
    python benchmarks/micro/noise.py --root DIR --anchor --rate 0.1  # with the linear fit on x_0 taken off, too

Trains the baseline, takes the input X of the first and the last convolution's weight and the gradient Y of its output
at the given epochs, and computes E|G - Y^T X|^2 / |Y^T X|^2 in closed form; the rounding of the int codecs from a
sample of sketch rows.  ``importance_sampling`` draws rows by the gradient's norms one epoch before; at epoch 1 there
are none.  Writes table.md, noise.json and noise.png into --out.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.harness.files import write_figure, write_text

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness import environment
from benchmarks.harness.datasets import load
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.methods import parse_sketch
from benchmarks.harness.script import parser_of
from benchmarks.micro.captured import Captured, capture
from rmm_gnn import RMMConfig
from rmm_gnn.anchor import fit_anchor, residual
from rmm_gnn.codecs import get_codec
from rmm_gnn.control_variates import column_means
from rmm_gnn.diagnostics import sgd_variance
from rmm_gnn.diagnostics.variance import rounding_variances
from rmm_gnn.sketches import FAMILIES

# Not those that need a grid of rows, which the nodes of a graph are not.
FAMILIES_OF_ROWS = sorted(name for name, family in FAMILIES.items() if not family.reads_shape)
# Sketch rows from which rounding is measured: making a row of a dense sketch costs a pass over X.
_DENSE = {"gaussian", "rademacher", "block_rademacher", "sors"}
_MANY_ROWS, _FEW_ROWS = 4096, 64
# Noise below this is the order of additions; such points would only stretch the picture.
_EXACT = 1e-9


@dataclass(frozen=True)
class Point:
    """One way to keep the input of one layer, and its noise.

    Attributes:
        epoch: When the layer was looked at.
        layer: Name of the weight.
        sketch: Family, with settings.
        center: Whether the column means are subtracted first.
        anchor: Whether the linear fit on x_0 is, too.
        codec: How the sketch is stored.
        rate: Share of rows kept.
        share: Bytes kept over those of X.
        noise: E|G - Y^T X|^2 / |Y^T X|^2.
    """

    epoch: int
    layer: str
    sketch: str
    center: bool
    anchor: bool
    codec: str
    rate: float
    share: float
    noise: float

    @property
    def label(self) -> str:
        return f"{self.sketch} {self.codec}" + (", anchored" if self.anchor else "" if self.center else ", uncentred")


def measure(
    seen: Captured, sketches: Sequence[str], codecs: Sequence[str], rates: Sequence[float], *, anchor: bool = False
) -> Iterator[Point]:
    """Yield the noise of every combination for one layer, with ``anchor`` also of the residual of the fit on x_0.

    Families that depend on the data cannot be anchored, and are left out there.
    """
    x, y = seen.x, seen.y
    signal = float((x.T @ y).double().square().sum())
    whole = x.shape[1] * x.element_size() * x.shape[0]
    means = column_means(x, RMMConfig().workspace_bytes)
    # What is sketched, and the row that is subtracted from it first.
    ways: list[tuple[Tensor, Tensor | None, bool]] = [(x, means, False), (x, None, False)]
    fit_bytes = 0
    if anchor:
        fitted = fit_anchor(x, seen.x_0, center=True, workspace_bytes=RMMConfig().workspace_bytes)
        ways.append((residual(x, fitted), None, True))
        fit_bytes = fitted.coefficients.nbytes
    seed = torch.zeros((), dtype=torch.int64, device=x.device)
    for (rows, mean, anchored), sketch in itertools.product(ways, sketches):
        family = parse_sketch(sketch)
        if anchored and family.depends_on_data:
            continue
        norms = seen.row_norms if family.reads_row_norms else None
        for rate in rates:
            config = RMMConfig(rate=rate, sketch=family, center=mean is not None)
            variance = family.variance(rows, y, config.sketch_size(x.shape[0]), mean=mean, row_norms=norms)
            assert variance is not None
            coded = [codec for codec in codecs if get_codec(codec).rounds_at_random]
            limit = _FEW_ROWS if family.name in _DENSE else _MANY_ROWS
            found = rounding_variances(rows, y, config, coded, seed, mean, limit, norms) if coded else []
            rounding = dict(zip(coded, map(float, found), strict=True))
            for codec in codecs:
                centred = anchored or mean is not None
                kept = replace(config, codec=codec, center=centred).saved_bytes(*x.shape, x.dtype)
                share = (kept + anchored * fit_bytes) / whole
                noise = (float(variance) + rounding.get(codec, 0.0)) / signal
                yield Point(seen.epoch, seen.layer, sketch, centred, anchored, codec, rate, share, noise)


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
    """A row of panels for each layer, a column for each epoch; in each the families, and the frontier of all points.

    The table has more: uncentred sketches, and the other families in all codecs, are seen here in the frontier alone.
    """
    from benchmarks.harness.frontier import pareto_front

    require("matplotlib").use("Agg")
    plt = require("matplotlib.pyplot")
    epochs = list(dict.fromkeys(point.epoch for point in points))
    layers = list(dict.fromkeys(point.layer for point in points))
    size = (5 * len(epochs), 4.2 * len(layers) + 2)
    figure, panels = plt.subplots(
        len(layers), len(epochs), figsize=size, squeeze=False, sharex=True, layout="constrained"
    )
    families = list(dict.fromkeys(point.sketch for point in points))
    codecs = list(dict.fromkeys(point.codec for point in points))
    styles = dict(zip(codecs, itertools.cycle(("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))), strict=False))
    handles = {}
    for (layer, epoch), panel in zip(itertools.product(layers, epochs), panels.flat, strict=True):
        here = [point for point in points if (point.epoch, point.layer) == (epoch, layer) and point.noise > _EXACT]
        front = pareto_front([(point.share, point.noise) for point in here], larger_is_better=False)
        shown = [point.label for point in here if _is_drawn(point, codecs[0])]
        for label in dict.fromkeys(shown):
            line = [point for point in here if point.label == label]
            (handle,) = panel.plot(
                [point.share for point in line], [point.noise for point in line],
                color=f"C{families.index(line[0].sketch)}", linestyle=styles[line[0].codec],
                marker="^" if line[0].anchor else ".", linewidth=1,
            )  # fmt: skip
            handles[label] = handle
        panel.step(*zip(*front, strict=True), where="post", color="black", linewidth=2.5, alpha=0.3)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_title(f"{layer}, epoch {epoch}")
        panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("bytes kept / bytes of X")
    for panel in panels[:, 0]:
        panel.set_ylabel("noise / signal of the weight gradient")
    figure.suptitle(f"{title} (thick: the frontier of all)")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize="small")
    write_figure(figure, path)
    plt.close(figure)


def _is_drawn(point: Point, first_codec: str) -> bool:
    if not point.center:
        return False
    if point.codec == first_codec:
        return not point.anchor or point.sketch == "count_sketch"
    return point.sketch == "count_sketch" and (not point.anchor or point.codec == "int2")


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
    parser.add_argument("--layers", type=int, default=6, help="GCN2 convolutions")
    parser.add_argument("--hidden", type=int, default=64, help="hidden channels")
    parser.add_argument("--epochs", type=int, nargs="+", default=[5, 60], help="when to look")
    parser.add_argument(
        "--sketch", nargs="+", default=FAMILIES_OF_ROWS, help="families, as in benchmarks/ogbn_arxiv.py"
    )
    parser.add_argument("--codec", nargs="+", default=["fp32", "int8", "int4", "int2", "int1"], help="codecs")
    parser.add_argument(
        "--rate", type=float, nargs="+", default=[1.0, 0.5, 0.2, 0.1, 0.05, 0.02], help="shares of rows"
    )
    parser.add_argument("--anchor", action="store_true", help="also sketch the residual of the fit on x_0")
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
    for seen in capture(dataset, given.epochs, given.layers, given.hidden, given.seed):
        signal = (seen.x.T @ seen.y).double().square().sum()
        data_noise[seen.epoch, seen.layer] = float(sgd_variance(seen.x, seen.y) / signal)
        found = measure(seen, given.sketch, given.codec, given.rate, anchor=given.anchor)
        anchored = [name for name in given.sketch if not parse_sketch(name).depends_on_data] if given.anchor else []
        total = (2 * len(given.sketch) + len(anchored)) * len(given.rate) * len(given.codec)
        points += tqdm(found, total=total, desc=f"{seen.layer}, epoch {seen.epoch}", file=sys.stderr)
    out = Path(given.out)
    title = f"{dataset.title}: GCN2, {given.layers} layers of {given.hidden}"
    stand_ins = "\n\nThe features are stand-ins, not OGB's." if dataset.features_are_stand_ins else ""
    text = f"**{title}**\n\n{format_table(points, data_noise)}{stand_ins}\n"
    write_text(out / "table.md", text)
    records = {"where": environment.describe(dataset.x.device), "points": [asdict(point) for point in points]}
    write_text(out / "noise.json", json.dumps(records, indent=1) + "\n")
    draw(points, out / "noise.png", title)
    print(f"\n{text}\nWrote table.md, noise.json and noise.png in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
