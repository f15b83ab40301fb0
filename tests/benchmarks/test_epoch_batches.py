"""What makes which batch: every item once an epoch, as many batches on every rank, the same again for the same seed."""

from __future__ import annotations

import pytest

from benchmarks.harness.epoch_batches import EpochBatches, EpochSteps, epoch_seed
from benchmarks.harness.errors import BenchmarkError


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("num_items", "per_batch"), [(3, 1), (5, 1), (7, 100), (60, 7), (61, 10), (64, 8)])
def test_ranks_share_all_items_in_as_many_batches(num_items: int, per_batch: int, world_size: int):
    ranks = [list(EpochBatches(num_items, per_batch, 0, rank, world_size)) for rank in range(world_size)]
    assert sorted(item for batches in ranks for batch in batches for item in batch) == list(range(num_items))
    assert {len(batches) for batches in ranks} == {len(EpochBatches(num_items, per_batch, 0, 0, world_size))}
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert min(sizes) >= 1
    if num_items >= world_size * per_batch:
        assert max(sizes) <= per_batch + 1


def test_orders_are_a_function_of_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = EpochBatches(50, 8, seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 1) == order(0, 1)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_seeds_differ_by_run_epoch_and_rank():
    seeds = [epoch_seed(seed, epoch, rank) for seed in range(12) for epoch in range(12) for rank in (None, 0, 1, 2)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_fewer_items_than_processes_are_refused():
    with pytest.raises(BenchmarkError, match=r"at least 1 training nodes.*got 2 for 3 processes"):
        EpochBatches(2, 1, 0, 0, 3)
    with pytest.raises(BenchmarkError, match=r"at least 2 training nodes.*got 5 for 3 processes"):
        EpochBatches(5, 1, 0, 0, 3, least=2)


@pytest.mark.parametrize(("num_items", "per_batch"), [(7, 1), (6, 2), (9, 2), (61, 3)])
def test_no_batch_is_too_small(num_items: int, per_batch: int):
    """BatchNorm has no statistics of a single row."""
    ranks = [list(EpochBatches(num_items, per_batch, 0, rank, 3, least=2)) for rank in range(3)]
    assert min(len(batch) for batches in ranks for batch in batches) >= 2
    assert sorted(item for batches in ranks for batch in batches for item in batch) == list(range(num_items))


def test_steps_are_counted():
    steps = EpochSteps(3)
    steps.set_epoch(2)
    assert len(steps) == 3 and list(steps) == [[0], [1], [2]]
