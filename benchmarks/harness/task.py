"""What a model is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks.harness.datasets.base import NodeDataset, Split
from benchmarks.harness.model import robust_loss


@dataclass(frozen=True, eq=False)
class Task:
    """The arguments of the forward pass, and the loss of its output.

    Attributes:
        inputs: Features and adjacency.
        loss_fn: Takes the logits of all nodes and returns the training loss.
    """

    inputs: tuple[Tensor, Tensor]
    loss_fn: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, dataset: NodeDataset, split: Split) -> Task:
        """The protocol's: the robust loss of the training nodes."""

        def loss_fn(logits: Tensor) -> Tensor:
            return robust_loss(logits[split.train], dataset.y[split.train])

        return cls((dataset.x, dataset.adjacency), loss_fn)
