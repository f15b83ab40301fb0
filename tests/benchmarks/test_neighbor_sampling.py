"""The sampler of neighbours: every set is equally likely, and every node is expanded once."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch_geometric.sampler import NodeSamplerInput

from benchmarks.harness.loaders import split_diagonal
from benchmarks.harness.neighbor_sampling import UniformNeighborSampler, sample_edges


@pytest.mark.parametrize(("degree", "number"), [(6, 1), (6, 2), (5, 3), (4, 3)])
def test_every_set_of_neighbours_is_equally_likely(degree: int, number: int):
    """Chi-square over sets, one sample of many nodes alike; a sampler that never takes the last is found out."""
    nodes = 20000
    starts = torch.arange(0, degree * (nodes + 1), degree)

    def surprise(shift: int) -> float:
        row, entry = sample_edges(starts, torch.arange(nodes), number)
        assert torch.equal(row, torch.arange(nodes).repeat_interleave(number))
        taken = (entry - starts[row]).view(nodes, number).sort(dim=1).values
        taken = taken.clamp(max=degree - 1 - shift)
        seen = Counter(map(tuple, taken.tolist()))
        sets = math.comb(degree, number)
        expected = nodes / sets
        missing = sets - len(seen)
        chi2 = sum((count - expected) ** 2 / expected for count in seen.values()) + missing * expected
        return (chi2 - (sets - 1)) / math.sqrt(2 * (sets - 1))

    assert surprise(0) < 5
    assert surprise(1) > 50


@pytest.mark.parametrize("number", [-1, 3, 7])
def test_all_neighbours_are_taken_where_there_are_no_more(number: int):
    starts = torch.tensor([0, 3, 3, 5])  # 3, 0 and 2 neighbours
    row, entry = sample_edges(starts, torch.tensor([2, 1, 0]), number)
    assert row.tolist() == [0, 0, 2, 2, 2] and entry.tolist() == [3, 4, 0, 1, 2]


def test_few_and_many_neighbours_together():
    starts = torch.tensor([0, 1, 11, 13])
    row, entry = sample_edges(starts, torch.arange(3), 2)
    assert sorted(row.tolist()) == [0, 1, 1, 2, 2]
    assert ((entry >= starts[row]) & (entry < starts[row + 1])).all() and len(entry.unique()) == 5


def test_nodes_are_numbered_as_they_are_found_and_expanded_once(tiny):
    row, col, *_ = split_diagonal(tiny.adjacency)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(row, minlength=60).cumsum(0)])
    sampler = UniformNeighborSampler(starts, col, (2, 3, 1))
    seeds = torch.tensor([7, 3, 40])
    for _ in range(3):  # nothing is left of the sample before
        out = sampler.sample_from_nodes(NodeSamplerInput(None, seeds))
        hops = torch.tensor(out.num_sampled_nodes).cumsum(0).tolist()
        assert torch.equal(out.node[:3], seeds) and hops[-1] == len(out.node) == len(out.node.unique())
        assert torch.equal(out.node[out.col], row[out.edge]) and torch.equal(out.node[out.row], col[out.edge])
        assert len(out.edge.unique()) == len(out.edge)
        degree = torch.bincount(row, minlength=60)[out.node]
        wanted = torch.zeros_like(degree)
        for start, stop, number in zip([0, *hops], hops, (2, 3, 1, 0), strict=False):
            wanted[start:stop] = number
        assert torch.equal(torch.bincount(out.col, minlength=len(degree)), torch.minimum(degree, wanted))
        assert (out.row[out.col < hops[0]] < hops[1]).all()


def test_edges_are_no_start():
    sampler = UniformNeighborSampler(torch.tensor([0, 0]), torch.tensor([], dtype=torch.int64), (1,))
    with pytest.raises(NotImplementedError, match=r"'sample_from_edges' must not be called.*starts from nodes"):
        sampler.sample_from_edges(None)
