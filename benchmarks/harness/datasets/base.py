"""What every loader returns: one graph with features, labels, a normalised adjacency and a split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor


def plain_accuracy(
    y_true: Tensor,  # [n]
    y_pred: Tensor,  # [n]
) -> float:
    """Fraction of equal entries."""
    return (y_true == y_pred).double().mean().item()


@dataclass(frozen=True)
class Split:
    """Node indices used for training, for choosing the epoch, and for the reported number."""

    train: Tensor  # [n_train]
    valid: Tensor  # [n_valid]
    test: Tensor  # [n_test]

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return Split(self.train.to(device), self.valid.to(device), self.test.to(device))


def random_split(num_nodes: int, seed: int, percent: tuple[int, int] = (10, 10)) -> Split:
    """A uniformly random split, a function of the seed only.

    Args:
        num_nodes: Number of nodes, at least 10.
        seed: Seed of a generator used for nothing else.
        percent: Shares of training and validation nodes in per cent, rounded down; the rest are test nodes.

    Returns:
        The split.
    """
    order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))
    train, valid = (num_nodes * share // 100 for share in percent)
    return Split(order[:train], order[train : train + valid], order[train + valid :])


@dataclass(frozen=True)
class NodeDataset:
    """A node-classification task.

    Attributes:
        name: The data set as named on the command line.
        title: How tables and pictures call it; says so when the features are stand-ins.
        x: Features [N, F], fp32.
        y: Classes [N], int64.
        adjacency: Symmetric normalised adjacency with self-loops [N, N], torch.sparse_csr, fp32.
        num_classes: Number of classes.
        split: The published split, or None when each seed draws its own.
        random_percent: Shares of training and validation nodes in such a random split, in per cent.
        features_are_stand_ins: Whether the features are not the published ones.
        accuracy: Takes classes and predictions [n] of some nodes, returns a fraction in [0, 1].
    """

    name: str
    title: str
    x: Tensor
    y: Tensor
    adjacency: Tensor
    num_classes: int
    split: Split | None = None
    random_percent: tuple[int, int] = (10, 10)
    features_are_stand_ins: bool = False
    accuracy: Callable[[Tensor, Tensor], float] = plain_accuracy

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.x.shape[0]

    @property
    def num_edges(self) -> int:
        """Undirected edges, self-loops not counted."""
        return (self.adjacency.values().numel() - self.num_nodes) // 2

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a hash of features, classes, adjacency and split."""
        digest = hashlib.sha256(str(self.random_percent).encode())
        parts = [
            self.x,
            self.y,
            self.adjacency.crow_indices(),
            self.adjacency.col_indices(),
            self.adjacency.values(),
        ]
        if self.split is not None:
            parts += [self.split.train, self.split.valid, self.split.test]
        for part in parts:
            digest.update(f"{tuple(part.shape)} {part.dtype};".encode())
            digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:12]

    @property
    def split_name(self) -> str:
        """How tables call the split."""
        if self.split is not None:
            return "the published split"
        train, valid = self.random_percent
        return f"a random {train}/{valid}/{100 - train - valid} split per seed"

    def split_for(self, seed: int) -> Split:
        """The split of the run with this seed: the published one, or the seed's random one."""
        return self.split or random_split(self.num_nodes, seed, self.random_percent)

    def evaluate(
        self,
        logits: Tensor,  # [N, num_classes]
        index: Tensor,  # [n]
    ) -> float:
        """Accuracy in [0, 1] over the nodes in `index`."""
        return self.accuracy(self.y[index], logits[index].argmax(dim=-1))

    def to(self, device: torch.device | str) -> NodeDataset:
        """The same data on another device."""
        return replace(
            self,
            x=self.x.to(device),
            y=self.y.to(device),
            adjacency=self.adjacency.to(device),
            split=self.split and self.split.to(device),
        )
