"""The order of the examples, the learning rate, and what a batch holds."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch

from benchmarks.text.batches import endless_batches, epoch_batches
from benchmarks.text.data import Encoded
from benchmarks.text.schedule import lr_factor

LENGTHS = torch.randint(5, 60, (1003,), generator=torch.Generator().manual_seed(0))


def epoch(seed: int) -> list[list[int]]:
    return epoch_batches(LENGTHS, 16, torch.Generator().manual_seed(seed))


def test_an_epoch_has_every_example_once():
    batches = epoch(0)
    assert len(batches) == 63 and sorted(len(batch) for batch in batches)[:2] == [11, 16]
    assert sorted(index for batch in batches for index in batch) == list(range(1003))


def test_the_order_follows_the_seed_alone():
    assert epoch(3) == epoch(3) != epoch(4)
    torch.manual_seed(1)
    first = list(islice(endless_batches(LENGTHS, 16, 7), 100))
    torch.manual_seed(2)
    batches = endless_batches(LENGTHS, 16, 7)
    second = []
    for batch in islice(batches, 100):
        torch.rand(3)  # what a method draws between two batches
        second.append(batch)
    assert first == second
    assert first[:37] != first[63:]  # the next epoch is another order


def test_grouping_saves_padding_and_leaves_the_order_random():
    def padding(batches: list[list[int]]) -> float:
        padded = sum(len(batch) * int(LENGTHS[batch].max()) for batch in batches)
        return padded / int(LENGTHS.sum()) - 1

    shuffled = [part.tolist() for part in torch.randperm(1003, generator=torch.Generator().manual_seed(0)).split(16)]
    assert padding(epoch(0)) < 0.08 < 0.5 < padding(shuffled)
    mean = torch.tensor([LENGTHS[batch].float().mean() for batch in epoch(0)])
    ascending = (mean.diff() > 0).float().mean()
    assert 0.25 < ascending < 0.75  # 1 where batches came by length


def test_the_learning_rate_rises_and_falls():
    factors = [lr_factor(step, 10, 0.2) for step in range(11)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])
    assert [lr_factor(step, 4, 0.0) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert lr_factor(0, 1, 0.06) == 1.0


def test_a_batch_is_padded_to_its_longest_example():
    starts = np.array([0, 2, 3, 6])
    encoded = Encoded(
        np.arange(10, 16, dtype=np.int32), np.array([0, 1, 0, 0, 1, 1], dtype=np.int32), starts,
        torch.tensor([5, 6, 7]), np.array([5, 6, 7]), pad=1,
    )  # fmt: skip
    assert encoded.lengths.tolist() == [2, 1, 3]
    inputs, targets = encoded.batch([2, 0], torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[13, 14, 15], [10, 11, 1]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert inputs["token_type_ids"].tolist() == [[0, 1, 1], [0, 1, 0]]
    assert targets.tolist() == [7, 5]
    inputs, _ = encoded.batch([1, 0], torch.device("cpu"))
    assert inputs["input_ids"].tolist() == [[12, 1], [10, 11]]
