"""Which items make which batch of which rank, epoch by epoch: a function of (seed, epoch, rank) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from benchmarks.harness.errors import BenchmarkError


def epoch_seed(seed: int, epoch: int, rank: int | None = None) -> int:
    """A seed for an epoch: of one rank, or, without a rank, one that all ranks share."""
    digest = hashlib.sha256(f"{seed} {epoch} {rank}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class EpochBatches(Sampler[list[int]]):
    """Batches of the numbers below ``num_items``: each number once an epoch, in one batch of one rank.

    All ranks draw the same order and take their shares of it, so that they have the same number of batches, whose sizes
    differ by one at most.  Call `set_epoch` before each epoch.

    Args:
        num_items: Such as the number of training nodes.
        per_batch: Items in a batch of a rank, at most, but for what is left where ranks cannot share it out.
        seed: Of the run.
        rank: Of the process.
        world_size: Processes that train.
        least: Items that a batch must have: BatchNorm needs two rows.

    Raises:
        BenchmarkError: When there are too few items for a batch in each process.
    """

    def __init__(
        self, num_items: int, per_batch: int, seed: int, rank: int = 0, world_size: int = 1, least: int = 1
    ) -> None:
        if num_items < least * world_size:
            raise BenchmarkError(
                f"There must be at least {least} training nodes, or parts of the graph, for each process "
                f"(got {num_items} for {world_size} processes). Use fewer processes."
            )
        self._num_items, self._seed, self._rank, self._world_size = num_items, seed, rank, world_size
        wanted = -(-num_items // (world_size * per_batch))
        self._num_batches = max(1, min(wanted, num_items // (least * world_size)))
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, self._epoch))
        order = torch.randperm(self._num_items, generator=generator)
        for shared in order.tensor_split(self._num_batches):
            yield shared.tensor_split(self._world_size)[self._rank].tolist()


class EpochSteps(Sampler[list[int]]):
    """So many batches of one item each, for a loader that draws at random what is in them.

    Args:
        num_batches: Of a rank, in an epoch.
    """

    def __init__(self, num_batches: int) -> None:
        self._num_batches = num_batches

    def set_epoch(self, epoch: int) -> None:
        """There is nothing to choose."""

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[number] for number in range(self._num_batches)])
