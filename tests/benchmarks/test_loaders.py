"""Batches of PyG's loaders: what they hold, that they replay, and that they estimate the full graph without bias."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.harness.datasets.base import Split
from benchmarks.harness.loaders import BatchLoader, split_diagonal
from benchmarks.harness.model import robust_loss
from benchmarks.harness.subgraphs import use_product
from benchmarks.harness.train import build_model
from tests.benchmarks.loading import EVERY, SMALL, needs


@pytest.fixture
def loading(make_run, tiny):
    """Makes the batches' loader of a run on `tiny`, half of whose nodes are trained on."""

    def make(loader: str, rank: int = 0, world_size: int = 1, **given: object) -> BatchLoader:
        run = make_run(loader=loader, **(SMALL[loader] | given))
        run = dataclasses.replace(run, world_size=world_size)
        return BatchLoader(run, tiny, torch.arange(0, tiny.num_nodes, 2), rank)

    return make


@pytest.mark.parametrize("loader", EVERY)
def test_batches_hold_the_nodes_they_name(loading, tiny, loader: str):
    batches = list(loading(loader).epoch(1))
    assert len(batches) == len(loading(loader)) > 1
    for batch in batches:
        trained = batch.nodes[batch.trained]
        assert torch.equal(batch.x, tiny.x[batch.nodes]) and torch.equal(batch.y, tiny.y[trained])
        assert (trained % 2 == 0).all() and len(batch.nodes.unique()) == len(batch.nodes)
        assert batch.rows(2)[0] == len(batch.nodes) and batch.num_entries(2) > 0


@pytest.mark.parametrize("loader", [case for case in EVERY if case.values[0] != "saint"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_training_node_is_trained_on_once_an_epoch(loading, loader: str, world_size: int):
    ranks = [list(loading(loader, rank, world_size).epoch(3)) for rank in range(world_size)]
    trained = torch.cat([batch.nodes[batch.trained] for batches in ranks for batch in batches])
    assert torch.equal(trained.sort().values, torch.arange(0, 60, 2))
    assert len({len(batches) for batches in ranks}) == 1


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", EVERY)
def test_an_epoch_replays_bit_for_bit(loading, loader: str, workers: int, monkeypatch):
    monkeypatch.undo()  # workers hand their batches over through a socket

    def epoch(number: int, rank: int = 0) -> list[torch.Tensor]:
        torch.manual_seed(number + 100 * rank)  # nor does it matter what was drawn before
        batches = list(loading(loader, rank, 2, workers=workers).epoch(number))
        return [part for batch in batches for part in (batch.nodes, batch.x, *[m.values() for m in batch.matrices])]

    def equal(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
        return len(first) == len(second) and all(map(torch.equal, first, second))

    assert equal(epoch(1), epoch(1))
    assert not equal(epoch(1), epoch(2)) and not equal(epoch(1), epoch(1, rank=1))


@pytest.mark.parametrize("loader", EVERY)
def test_products_are_those_of_the_full_graph_on_average(loading, tiny, loader: str):
    """Rows of A x, over epochs, by z-scores; plain weights, too small, must be found out."""
    full = (tiny.adjacency @ tiny.x).double()
    # That saint's probabilities are estimated is a bias of its own, which more samples of them make small.
    more = {"coverage": 1000} if loader == "saint" else {}

    def scores(edge_weights: str) -> torch.Tensor:
        total, squares, count = (torch.zeros(60, columns, dtype=torch.float64) for columns in (5, 5, 1))
        batches = loading(loader, edge_weights=edge_weights, **more)
        for number in range(80):
            for batch in batches.epoch(number):
                matrix = batch.matrices[-1]
                nodes = batch.nodes[: matrix.shape[0]]
                difference = (matrix @ batch.x[: matrix.shape[1]]).double() - full[nodes]
                total[nodes] += difference
                squares[nodes] += difference**2
                count[nodes] += 1
        seen = count[:, 0] > 30
        mean, variance = total / count, squares / count - (total / count) ** 2
        return (mean / (variance / count + 1e-12).sqrt())[seen]

    assert scores("scaled").abs().max() < 5
    assert scores("plain").abs().max() > 10


@pytest.mark.parametrize("method", ["baseline", "checkpoint"])
@pytest.mark.parametrize("every_node", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
def test_all_neighbours_of_all_seeds_give_the_gradients_of_the_full_batch(
    make_run, tiny, method: str, every_node: bool, layers: int
):
    """With BatchNorm's own statistics where its rows are all nodes, with fixed ones where they are not."""
    train = torch.randperm(60)[: 60 if every_node else 12]
    run = make_run(
        method=(method,), layers=layers, loader="neighbor", fan_out=(-1,), batch_size=60, dropout=0.0, theta=0.5
    )
    (batch,) = BatchLoader(run, tiny, train).epoch(1)
    assert every_node or len(batch.nodes) < 60 or layers > 1
    model = build_model(run, 5, 3)
    gradients = []
    for loss_of in (
        lambda: robust_loss(model(tiny.x, tiny.adjacency)[train], tiny.y[train]),
        lambda: batch.task().loss_fn(use_product(model)(*batch.task().inputs)),
    ):
        model.train()
        if not every_node:
            for norm in model.norms:
                norm.eval()
        model.zero_grad()
        loss_of().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for full, sampled in zip(*gradients, strict=True):
        assert full.abs().max() > 0
        torch.testing.assert_close(sampled, full, rtol=1e-4, atol=1e-6)


@needs("saint")
def test_losses_of_random_walks_are_those_of_the_training_nodes_on_average(loading, tiny):
    batches = loading("saint", coverage=1000)
    logits = torch.randn(60, 3)
    train = torch.arange(0, 60, 2)
    values = []
    for number in range(80):
        values += [batch.task().loss_fn(logits[batch.nodes]).item() for batch in batches.epoch(number)]
    values = torch.tensor(values, dtype=torch.float64)
    expected = robust_loss(logits[train], tiny.y[train]).item()
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected) < 5 * error
    assert abs(values.mean() - 1.05 * expected) > error  # the scale is told apart


def test_a_batch_without_a_training_node_has_a_gradient_of_zero(loading):
    batch = next(iter(loading("random-nodes").epoch(1)))
    none = dataclasses.replace(batch, trained=batch.trained[:0], y=batch.y[:0])
    logits = torch.randn(len(batch.nodes), 3, requires_grad=True)
    loss = none.task().loss_fn(logits)
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_the_diagonal_is_split_off(tiny):
    row, col, value, loops = split_diagonal(tiny.adjacency)
    matrix = torch.diag(loops)
    matrix[row, col] = value
    assert torch.equal(matrix, tiny.adjacency.to_dense()) and not (row == col).any()


def test_another_device_gets_the_whole_batch(loading):
    batch = next(iter(loading("random-nodes").epoch(1)))
    assert batch.to(torch.device("cpu")) is batch
    there = batch.to(torch.device("meta"))
    assert {there.x.device.type, there.trained.device.type, there.adjacency.device.type} == {"meta"}


def test_published_splits_are_used(make_run, tiny):
    train = torch.arange(5)
    dataset = dataclasses.replace(tiny, split=Split(train, torch.arange(5, 20), torch.arange(20, 60)))
    run = make_run(loader="random-nodes", **SMALL["random-nodes"])
    batches = BatchLoader(run, dataset, dataset.split_for(0).train).epoch(1)
    assert sum(len(batch.y) for batch in batches) == 5
