"""PyG's loaders, and the batches that a model is trained on made of what they return."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.epoch_batches import EpochBatches, EpochSteps, epoch_seed
from benchmarks.harness.model import robust_losses
from benchmarks.harness.neighbor_sampling import UniformNeighborSampler
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.subgraphs import induced, layered, moved, scaled_for_sample, transpose_of
from benchmarks.harness.task import Task


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """What one step is trained on.

    Attributes:
        nodes: Their numbers in the full graph [n].
        x: Their features [n, F].
        adjacency: One matrix for all layers, or one a layer, whose rows are the first of the nodes.
        trained: Rows of the logits that the loss is of [m].
        y: Their classes [m].
        weights: Their weights in the loss [m], where the loader has such; else None, for the mean.
    """

    nodes: Tensor
    x: Tensor
    adjacency: Tensor | tuple[Tensor, ...]
    trained: Tensor
    y: Tensor
    weights: Tensor | None = None

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        """The adjacency's, one or one a layer."""
        return self.adjacency if isinstance(self.adjacency, tuple) else (self.adjacency,)

    def rows(self, num_layers: int) -> list[int]:
        """Rows that each product sees: of the first Linear, the convolutions, the last Linear."""
        matrices = self.matrices if isinstance(self.adjacency, tuple) else self.matrices * num_layers
        convolutions = [matrix.shape[0] for matrix in matrices]
        return [len(self.nodes), *convolutions, convolutions[-1]]

    def num_entries(self, num_layers: int) -> int:
        """Entries of the matrices of all layers: multiplications for each channel."""
        matrices = self.matrices if isinstance(self.adjacency, tuple) else self.matrices * num_layers
        return sum(matrix.values().numel() for matrix in matrices)

    def tensors(self) -> tuple[Tensor, ...]:
        """All that lives as long as the batch does."""
        transposes = [transpose_of(matrix) for matrix in self.matrices]
        parts = (self.x, self.trained, self.y, self.weights, *self.matrices, *transposes)
        return tuple(part for part in parts if part is not None)

    def to(self, device: torch.device) -> GraphBatch:
        """The same batch on another device."""
        if self.x.device == device:
            return self
        there: dict[int, Tensor] = {id(matrix): moved(matrix, device) for matrix in self.matrices}
        parts = tuple(there[id(matrix)] for matrix in self.matrices)
        return GraphBatch(
            nodes=self.nodes,
            x=self.x.to(device),
            adjacency=parts if isinstance(self.adjacency, tuple) else parts[0],
            trained=self.trained.to(device),
            y=self.y.to(device),
            weights=None if self.weights is None else self.weights.to(device),
        )

    def task(self, scale: float | None = None) -> Task:
        """The batch as what a model is trained on.

        Args:
            scale: Factor of the sum of the losses of the trained rows; unset: one over their number.  Not read where
                the batch has weights of its own.
        """

        def loss_fn(logits: Tensor) -> Tensor:
            losses = robust_losses(logits[self.trained], self.y)
            if self.weights is not None:
                return (self.weights * losses).sum()
            # Without a trained row the sum is zero, and so is every gradient.
            return losses.sum() * (1 / max(1, len(self.y)) if scale is None else scale)

        return Task((self.x, self.adjacency), loss_fn)


class BatchLoader:
    """The batches of one rank, epoch by epoch.

    Args:
        run: Names the loader and its settings.
        dataset: The full graph, on CPU.
        train: Training nodes.
        rank: Of this process.
    """

    def __init__(self, run: RunConfig, dataset: NodeDataset, train: Tensor, rank: int = 0) -> None:
        self._run, self._dataset, self._rank = run, dataset, rank
        self._is_trained = torch.zeros(dataset.num_nodes, dtype=torch.bool)
        self._is_trained[train] = True
        self._train = train
        self._row, self._col, self._weight, self._loops = split_diagonal(dataset.adjacency)
        self._degree = torch.bincount(self._row, minlength=dataset.num_nodes)
        made: tuple[DataLoader, EpochBatches | EpochSteps, Callable[[Data], GraphBatch]] = {
            "neighbor": self._neighbor,
            "cluster": self._cluster,
            "saint": self._saint,
            "random-nodes": self._random_nodes,
        }[run.loader]()
        self._loader, self._batches, self._batch_of = made

    def __len__(self) -> int:
        return len(self._batches)

    def epoch(self, number: int) -> Iterator[GraphBatch]:
        """The batches of an epoch: a function of the run's seed, the epoch and the rank, whatever the method draws.

        PyTorch's generators are set when the first batch is asked for, so that dropout and sketches of the epoch are
        such a function, too.
        """
        torch.manual_seed(epoch_seed(self._run.seed, -number, self._rank))
        sampling = torch.get_rng_state()
        torch.manual_seed(epoch_seed(self._run.seed, number, self._rank))
        training = torch.get_rng_state()
        torch.set_rng_state(sampling)
        self._batches.set_epoch(number)
        batches = iter(self._loader)
        while True:
            data = next(batches, None)
            sampling = torch.get_rng_state()
            torch.set_rng_state(training)
            if data is None:
                return
            yield self._batch_of(data)
            training = torch.get_rng_state()
            torch.set_rng_state(sampling)

    def _data(self) -> Data:
        # Sorted by the node that has the neighbour, which PyG calls the target.
        return Data(
            edge_index=torch.stack([self._col, self._row]),
            edge_weight=self._weight,
            node=torch.arange(self._dataset.num_nodes),
            num_nodes=self._dataset.num_nodes,
        )

    def _epoch_batches(self, num_items: int, per_batch: int, least: int = 2) -> EpochBatches:
        return EpochBatches(num_items, per_batch, self._run.seed, self._rank, self._run.world_size, least)

    def _neighbor(self) -> tuple[DataLoader, EpochBatches, Callable[[Data], GraphBatch]]:
        from torch_geometric.loader import NeighborLoader

        run = self._run
        assert run.fan_out is not None and run.batch_size is not None
        batches = self._epoch_batches(len(self._train), run.batch_size)
        starts = torch.cat([self._degree.new_zeros(1), self._degree.cumsum(0)])
        loader = NeighborLoader(
            self._data(),
            list(run.fan_out),
            input_nodes=self._train,
            neighbor_sampler=UniformNeighborSampler(starts, self._col, run.fan_out),
            batch_sampler=batches,
            num_workers=run.workers,
        )

        def batch_of(data: Data) -> GraphBatch:
            (col, row), nodes, weight = data.edge_index, data.node, data.edge_weight
            rows = list(accumulate(data.num_sampled_nodes))
            if run.edge_weights == "scaled":
                weight = scaled_for_sample(weight, row, self._degree[nodes])
            adjacency = layered(row, col, weight, self._loops[nodes], rows, run.layers)
            return self._made(nodes, adjacency, torch.arange(rows[0]))

        return loader, batches, batch_of

    def _random_nodes(self) -> tuple[DataLoader, EpochBatches, Callable[[Data], GraphBatch]]:
        from torch_geometric.loader import RandomNodeLoader

        run, num_nodes = self._run, self._dataset.num_nodes
        assert run.num_parts is not None and run.parts_per_batch is not None
        batches = self._epoch_batches(num_nodes, math.ceil(num_nodes * run.parts_per_batch / run.num_parts))
        # PyG's own cuts the nodes into batches by itself, which need not be as many on every rank.
        collate = RandomNodeLoader(self._data(), run.num_parts).collate_fn
        loader: DataLoader = DataLoader(
            range(num_nodes), batch_sampler=batches, collate_fn=collate, num_workers=run.workers
        )

        def batch_of(data: Data) -> GraphBatch:
            (col, row), nodes, weight = data.edge_index, data.node, data.edge_weight
            if run.edge_weights == "scaled":
                weight = weight * ((num_nodes - 1) / max(1, len(nodes) - 1))
            return self._made(nodes, induced(row, col, weight, self._loops[nodes]))

        return loader, batches, batch_of

    def _cluster(self) -> tuple[DataLoader, EpochBatches, Callable[[Data], GraphBatch]]:
        from torch_geometric.loader import ClusterLoader

        from benchmarks.harness.clusters import Clusters

        run = self._run
        assert run.num_parts is not None and run.parts_per_batch is not None
        clusters = Clusters(self._data(), run.num_parts)
        batches = self._epoch_batches(len(clusters), run.parts_per_batch, least=1)
        loader = ClusterLoader(clusters, batch_sampler=batches, num_workers=run.workers)
        part = torch.empty(self._dataset.num_nodes, dtype=torch.int64)
        part[clusters.partition.node_perm] = torch.repeat_interleave(
            torch.arange(len(clusters)), clusters.partition.partptr.diff()
        )

        def batch_of(data: Data) -> GraphBatch:
            (col, row), nodes, weight = data.edge_index, data.node, data.edge_weight
            in_batch = len(part[nodes].unique())
            if run.edge_weights == "scaled" and in_batch > 1:
                between = part[nodes[row]] != part[nodes[col]]
                weight = torch.where(between, weight * ((len(clusters) - 1) / (in_batch - 1)), weight)
            return self._made(nodes, induced(row, col, weight, self._loops[nodes]))

        return loader, batches, batch_of

    def _saint(self) -> tuple[DataLoader, EpochSteps, Callable[[Data], GraphBatch]]:
        from torch_geometric.loader import GraphSAINTRandomWalkSampler

        run, num_nodes = self._run, self._dataset.num_nodes
        assert run.batch_size is not None and run.walk_length is not None and run.coverage is not None
        per_batch = run.batch_size * (run.walk_length + 1)
        batches = EpochSteps(max(1, math.ceil(num_nodes / (per_batch * run.world_size))))
        # The same on all ranks: what is estimated here is part of the loss.
        torch.manual_seed(epoch_seed(run.seed, 0))
        data = self._data()
        data.edge_index = data.edge_index.flip(0)  # PyG counts the edges of the first of two nodes
        sampler = GraphSAINTRandomWalkSampler(
            data,
            batch_size=run.batch_size,
            walk_length=run.walk_length,
            num_steps=len(batches),
            sample_coverage=run.coverage,
            log=False,
        )
        loader: DataLoader = DataLoader(
            sampler, batch_sampler=batches, collate_fn=sampler._collate, num_workers=run.workers
        )
        share = num_nodes / max(1, len(self._train))

        def batch_of(data: Data) -> GraphBatch:
            (row, col), nodes, weight = data.edge_index, data.node, data.edge_weight
            if run.edge_weights == "scaled":
                # PyG gives an edge it has not met 1e4; that it met the node so often and not the edge says less.
                weight = weight * torch.where(data.edge_norm < 1e4, data.edge_norm, float(run.coverage))
            adjacency = induced(row, col, weight, self._loops[nodes], symmetric=False)
            batch = self._made(nodes, adjacency)
            weights = share * data.node_norm[batch.trained]
            return GraphBatch(batch.nodes, batch.x, batch.adjacency, batch.trained, batch.y, weights)

        return loader, batches, batch_of

    def _made(self, nodes: Tensor, adjacency: Tensor | tuple[Tensor, ...], trained: Tensor | None = None) -> GraphBatch:
        if trained is None:
            trained = self._is_trained[nodes].nonzero().view(-1)
        x, y = self._dataset.x[nodes], self._dataset.y[nodes[trained]]
        return GraphBatch(nodes, x, adjacency, trained, y)


def split_diagonal(
    adjacency: Tensor,  # [N, N], torch.sparse_csr with every entry of the diagonal
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Row, column and value of the other entries [E], sorted by row, and the diagonal [N]."""
    row = torch.repeat_interleave(torch.arange(adjacency.shape[0]), adjacency.crow_indices().diff())
    col, value = adjacency.col_indices(), adjacency.values()
    loop = row == col
    return row[~loop], col[~loop], value[~loop], value[loop]
