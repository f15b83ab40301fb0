"""What a transformer in training gives its weight gradients: inputs and gradients by sequence and token."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.batches import endless_batches
from benchmarks.text.data import Encoded
from benchmarks.text.evaluate import loss_of
from benchmarks.text.models import ModelSource
from benchmarks.text.tasks import GlueTask
from rmm_gnn.diagnostics.products import Product, WatchProducts


@dataclass(frozen=True, eq=False)
class CapturedLayer:
    """One linear layer at one step.

    Attributes:
        name: Of its weight.
        x: X [n, L, N].
        y: Gradient of the output [n, L, M].
        mask: True where there is a token and no padding [n, L].
    """

    name: str
    x: Tensor
    y: Tensor
    mask: Tensor


def capture_layers(
    source: ModelSource,
    task: GlueTask,
    data: Encoded,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    layers: str,
    seed: int,
    device: torch.device,
) -> list[CapturedLayer]:
    """Fine-tune for ``steps`` steps with AdamW, and return what the layers see in one more.

    Args:
        source: Makes the model.
        task: What it is trained on.
        data: Its training examples.
        steps: Before the one that is looked at.
        batch_size: Sequences, n.
        lr: Learning rate, constant.
        layers: Regular expression for whole names of weights; those that read one row for each token are taken.
        seed: Of the head, the batches and dropout.
        device: Where to train.

    Raises:
        BenchmarkError: When no layer has such a name.
    """
    model = source.build(task.num_outputs, seed).to(device).train()
    watched: dict[Tensor, str] = {
        weight: name for name, weight in model.named_parameters() if weight.dim() == 2 and re.fullmatch(layers, name)
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    torch.manual_seed(seed)
    batches = endless_batches(data.lengths, batch_size, seed)
    for _ in tqdm(range(steps), desc="training", unit="step", file=sys.stderr):
        inputs, targets = data.batch(next(batches), device)
        optimizer.zero_grad(set_to_none=True)
        loss_of(task, model(**inputs).logits, targets).backward()
        optimizer.step()

    seen: list[tuple[Product, list[Tensor]]] = []

    def note(product: Product) -> None:
        gradient: list[Tensor] = []
        product.out.register_hook(gradient.append)
        seen.append((product, gradient))

    inputs, targets = data.batch(next(batches), device)
    with WatchProducts(watched, note):
        loss = loss_of(task, model(**inputs).logits, targets)
    loss.backward()
    mask = inputs["attention_mask"].bool()
    found = [
        CapturedLayer(product.name, product.x.detach(), gradient[0], mask)
        for product, gradient in seen
        if product.x.shape[:-1] == mask.shape
    ]
    if not found:
        raise BenchmarkError(
            f"'layers' must match weights of layers that read one row for each token (got {layers!r}). "
            f"Weights are named like {next(name for name, weight in model.named_parameters() if weight.dim() == 2)}."
        )
    return found
