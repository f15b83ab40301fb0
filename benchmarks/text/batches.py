"""The order of the examples: a function of the run's seed alone, whatever the method draws."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Batches whose examples are sorted together: enough to save most of the padding, few enough to keep the order random.
_WINDOW = 50


def epoch_batches(lengths: Tensor, batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """One epoch's batches: a random order, in which examples of like length were then put together.

    Args:
        lengths: Of the examples [n]; grouping saves padding.
        batch_size: The last batch of the order may be smaller.
        generator: Draws the order.

    Returns:
        Numbers of the examples, each one once.
    """
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[list[int]] = []
    for window in order.split(_WINDOW * batch_size):
        grouped = window[lengths[window].argsort(stable=True)].split(batch_size)
        batches += [grouped[i].tolist() for i in torch.randperm(len(grouped), generator=generator).tolist()]
    return batches


def endless_batches(lengths: Tensor, batch_size: int, seed: int) -> Iterator[list[int]]:
    """The batches of one epoch after the other."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from epoch_batches(lengths, batch_size, generator)
