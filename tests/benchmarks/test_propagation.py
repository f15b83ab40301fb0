"""The normalised adjacency, and the product that keeps nothing dense."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch_geometric.nn import GCN2Conv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import coalesce, remove_self_loops, to_torch_csr_tensor

from benchmarks.harness.propagation import (
    is_symmetric,
    normalized_adjacency,
    symmetric_spmm,
    use_symmetric_product,
)

N = 60


@pytest.fixture
def adjacency(random_edges: torch.Tensor) -> torch.Tensor:
    return normalized_adjacency(random_edges, N)


def test_normalisation_is_gcn_norm(random_edges: torch.Tensor, adjacency: torch.Tensor):
    edges, _ = remove_self_loops(random_edges)
    edges, weight = gcn_norm(coalesce(torch.cat([edges, edges.flip(0)], dim=1)), num_nodes=N)
    expected = torch.zeros(N, N).index_put_((edges[1], edges[0]), weight)
    torch.testing.assert_close(adjacency.to_dense(), expected)
    assert adjacency.layout == torch.sparse_csr and adjacency.dtype == torch.float32
    assert is_symmetric(adjacency)


def test_a_graph_without_edges_is_the_identity():
    empty = normalized_adjacency(torch.empty(2, 0, dtype=torch.long), 4)
    assert torch.equal(empty.to_dense(), torch.eye(4))


def test_an_index_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"'edge_index' must hold node numbers in \[0, 3\) \(got 0 to 3\)"):
        normalized_adjacency(torch.tensor([[0], [3]]), 3)


def test_symmetry_is_seen():
    values = torch.tensor([[1.0, 2.0], [2.0, 0.0]])
    assert is_symmetric(values.to_sparse_csr())
    values[1, 0] = 3
    assert not is_symmetric(values.to_sparse_csr())
    values[1, 0] = 0
    assert not is_symmetric(values.to_sparse_csr())
    assert not is_symmetric(torch.ones(2, 3).to_sparse_csr())


def test_product_and_gradient_equal_the_dense_ones(adjacency: torch.Tensor):
    x = torch.randn(N, 7, requires_grad=True)
    grad = torch.randn(N, 7)
    expected = adjacency.to_dense() @ x
    (expected_grad,) = torch.autograd.grad(expected, x, grad)
    out = symmetric_spmm(adjacency, x)
    (got_grad,) = torch.autograd.grad(out, x, grad)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(got_grad, expected_grad)


def test_gradcheck(adjacency: torch.Tensor):
    double = adjacency.to_dense().double().to_sparse_csr()
    x = torch.randn(N, 2, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: symmetric_spmm(double, x), x)
    assert torch.autograd.gradgradcheck(lambda x: symmetric_spmm(double, x), x)


def test_without_a_needed_gradient_none_is_made(adjacency: torch.Tensor):
    assert not symmetric_spmm(adjacency, torch.randn(N, 2)).requires_grad


def test_only_the_matrix_is_kept(adjacency: torch.Tensor):
    kept = []
    x = torch.randn(N, 7, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        symmetric_spmm(adjacency, x)
    assert [tensor.layout for tensor in kept] == [torch.sparse_csr]
    assert kept[0].values().data_ptr() == adjacency.values().data_ptr()


class Renamed(GCN2Conv):
    """What a converter makes of a layer by changing its class: another forward, the same propagation."""

    def forward(self, x, x_0, edge_index, edge_weight=None):
        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        return self.propagate(edge_index, x=x, edge_weight=edge_weight) @ self.weight1


def converted(module: GCN2Conv) -> GCN2Conv:
    module.__class__ = Renamed
    return module


@pytest.mark.parametrize(
    "prepare", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["itself", "copy", "pickle"]
)
def test_stock_layers_use_it_and_give_the_same_values(adjacency, random_edges, prepare, monkeypatch):
    conv = GCN2Conv(7, 0.5, shared_weights=False, normalize=False)
    x, x_0 = torch.randn(N, 7), torch.randn(N, 7)
    coo = adjacency.to_sparse_coo().coalesce()
    stock = conv(x, x_0, to_torch_csr_tensor(coo.indices(), coo.values(), size=(N, N)))
    swapped = prepare(use_symmetric_product(conv))
    assert type(swapped) is GCN2Conv
    torch.testing.assert_close(swapped(x, x_0, adjacency), stock)
    monkeypatch.setattr("torch_geometric.nn.conv.gcn2_conv.spmm", None)  # PyG's own product is not called
    swapped(x, x_0, adjacency)
    torch.testing.assert_close(converted(swapped)(x, x_0, adjacency), adjacency.to_dense() @ x @ conv.weight1)


@pytest.mark.parametrize("convert", [lambda m: m, converted], ids=["stock", "converted"])
def test_a_convolution_keeps_no_messages_and_no_product_operand(adjacency, convert):
    conv = convert(use_symmetric_product(GCN2Conv(7, 0.5, normalize=False)))
    x = torch.randn(N, 7, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        conv(x, torch.randn(N, 7), adjacency)
    dense = [tensor for tensor in kept if tensor.layout == torch.strided]
    assert all(tensor.numel() <= N * 7 for tensor in dense)  # E x C would be more
    assert all(tensor.data_ptr() != x.data_ptr() for tensor in dense)
