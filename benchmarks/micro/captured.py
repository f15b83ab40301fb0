"""What a trained GCN2 gives its weight gradients: inputs and gradients of its first and last convolution."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.harness.config import resolve
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.task import Task
from benchmarks.harness.train import build_model
from rmm_gnn.diagnostics.products import Product, WatchProducts


@dataclass(frozen=True, eq=False)
class Captured:
    """One convolution at one step.

    Attributes:
        epoch: When.
        layer: Its name.
        x: X of its first weight [B, N].
        y: Gradient of that product [B, M].
        x_0: What its second weight reads, the initial features times a number [B, N]: a fit on it is one on x_0.
        row_norms: Norms of the rows of the gradient one epoch before [B]; None at the first.
    """

    epoch: int
    layer: str
    x: Tensor
    y: Tensor
    x_0: Tensor
    row_norms: Tensor | None


def capture(dataset: NodeDataset, epochs: Sequence[int], layers: int, hidden: int, seed: int) -> Iterator[Captured]:
    """Train the baseline; at every epoch in `epochs`, yield its first and its last convolution."""
    given = {"method": ("baseline",), "layers": layers, "hidden": hidden, "epochs": max(epochs), "seed": seed}
    run = resolve({"dataset": dataset.name, **given}).expand("", str(dataset.x.device))[0]
    task = Task.of(dataset, dataset.split_for(seed).to(dataset.x.device))
    model = build_model(run, dataset.x.shape[1], dataset.num_classes, task).train()
    places = [f"convs.{index}" for index in sorted({0, layers - 1})]
    names = [f"{place}.{weight}" for place in places for weight in ("weight1", "weight2")]
    watched = {model.get_parameter(name): name for name in names}
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
        found = {product.name: (product.rows, gradient[0]) for product, gradient in seen}
        for place in places if found else ():
            x, y = found[f"{place}.weight1"]
            if epoch in epochs:
                yield Captured(epoch, place, x, y, found[f"{place}.weight2"][0], norms.get(place))
            norms[place] = torch.linalg.vector_norm(y, dim=1)
        nn.utils.clip_grad_norm_(model.parameters(), run.clip)
        optimizer.step()


def _note(seen: list[tuple[Product, list[Tensor]]], product: Product) -> None:
    gradient: list[Tensor] = []
    product.out.register_hook(gradient.append)
    seen.append((product, gradient))
