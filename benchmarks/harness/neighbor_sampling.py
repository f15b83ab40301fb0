"""Neighbours sampled uniformly, hop by hop, for PyG's ``NeighborLoader``; in PyTorch alone.

PyG calls pyg-lib, or else torch-sparse, whose sample without replacement is not uniform: up to 0.6.18 it never takes
the last neighbour of a node where it takes one, and takes the last k too rarely where it takes k.  Weights that are to
make up for what was dropped would be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput


class UniformNeighborSampler(BaseSampler):
    """For every node found, a uniform sample of its neighbours without replacement; each node is expanded once.

    Nodes of the result are numbered in the order they were found: seeds, first hop, second hop.

    Args:
        starts: Where each node's neighbours begin [N + 1].
        neighbors: The neighbours [E].
        fan_out: How many of them to take, nearest hop first; -1: all.
    """

    def __init__(self, starts: Tensor, neighbors: Tensor, fan_out: Sequence[int]) -> None:
        self._starts, self._neighbors, self._fan_out = starts, neighbors, tuple(fan_out)
        # The number of a node in the sample that is being drawn; -1 for all others, and for all between two samples.
        self._place = torch.full((starts.numel() - 1,), -1)

    def sample_from_nodes(self, index: NodeSamplerInput, **kwargs: object) -> SamplerOutput:
        """The sample around some nodes, each of which must be named once."""
        place, frontier = self._place, index.node
        place[frontier] = torch.arange(len(frontier))
        nodes, rows, edges = [frontier], [], []
        count = len(frontier)
        for number in self._fan_out:
            row, edge = sample_edges(self._starts, frontier, number)
            rows.append(row + count - len(frontier))
            edges.append(edge)
            found = self._neighbors[edge]
            frontier = found[place[found] < 0].unique()
            place[frontier] = torch.arange(count, count + len(frontier))
            nodes.append(frontier)
            count += len(frontier)
        node, edge = torch.cat(nodes), torch.cat(edges)
        col = place[self._neighbors[edge]]
        place[node] = -1
        return SamplerOutput(
            node=node,
            row=col,  # PyG's row is the neighbour, its column the node that has it
            col=torch.cat(rows),
            edge=edge,
            num_sampled_nodes=[len(hop) for hop in nodes],
            num_sampled_edges=[len(hop) for hop in edges],
            metadata=(index.input_id, index.time),
        )

    def sample_from_edges(self, *args: object, **kwargs: object) -> SamplerOutput:
        """PyG asks for it with loaders of edges.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("'sample_from_edges' must not be called (got edges). This sampler starts from nodes.")

    @property
    def edge_permutation(self) -> None:
        """Edges are numbered as they were given."""
        return None


def sample_edges(
    starts: Tensor,  # [N + 1]
    nodes: Tensor,  # [n]
    number: int,
) -> tuple[Tensor, Tensor]:  # [m], [m]
    """A uniform sample, without replacement, of each node's entries in ``starts[node]`` to ``starts[node + 1]``.

    Args:
        starts: Where each node's entries begin.
        nodes: The nodes.
        number: Entries per node; where there are no more, or for -1, all are taken.

    Returns:
        Which of the nodes, and the number of the entry.
    """
    first = starts[nodes]
    degree = starts[nodes + 1] - first
    is_whole = torch.ones_like(degree, dtype=torch.bool) if number == -1 else degree <= number
    whole, cut = is_whole.nonzero().view(-1), (~is_whole).nonzero().view(-1)
    row = torch.repeat_interleave(whole, degree[whole])
    ends = degree[whole].cumsum(0)
    entry = torch.arange(len(row)) - torch.repeat_interleave(ends - degree[whole], degree[whole]) + first[row]
    if not len(cut):
        return row, entry
    picks = _floyd(degree[cut], number)
    return torch.cat([row, cut.repeat_interleave(number)]), torch.cat([entry, (first[cut, None] + picks).view(-1)])


def _floyd(
    sizes: Tensor,  # [n], all larger than `number`
    number: int,
) -> Tensor:  # [n, number]
    """For each size, as many different numbers below it; every set is equally likely (Floyd's algorithm)."""
    picks = torch.empty(len(sizes), number, dtype=torch.int64)
    for step in range(number):
        last = sizes - number + step
        drawn = (torch.rand(len(sizes), dtype=torch.float64) * (last + 1)).long().clamp_(max=last)
        is_taken = (picks[:, :step] == drawn[:, None]).any(dim=1)
        picks[:, step] = torch.where(is_taken, last, drawn)
    return picks
