"""What a model is trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.harness.datasets.base import NodeDataset, Split
from benchmarks.harness.model import robust_loss


@dataclass(frozen=True, eq=False)
class Task:
    """The arguments of the forward pass, and the loss of its output.

    Attributes:
        inputs: Features, and adjacency: one matrix, or a tuple with one a layer.
        loss_fn: Takes the logits that the model returns and returns the training loss.
    """

    inputs: tuple[Tensor, Tensor | tuple[Tensor, ...]]
    loss_fn: Callable[[Tensor], Tensor]

    @property
    def held(self) -> tuple[Tensor, ...]:
        """The tensors among the inputs: they live until the step is over, whatever a method keeps."""
        return tuple(tree_leaves(self.inputs))

    @classmethod
    def of(cls, dataset: NodeDataset, split: Split) -> Task:
        """The protocol's: the robust loss of the training nodes."""

        def loss_fn(logits: Tensor) -> Tensor:
            return robust_loss(logits[split.train], dataset.y[split.train])

        return cls((dataset.x, dataset.adjacency), loss_fn)
