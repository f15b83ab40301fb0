"""The graph as a matrix, and its product with node features.

A symmetric matrix is its own transpose, so the gradient of A x is A times the gradient: no transposed copy,
no conversion of layouts in backward, and nothing kept but A itself.  PyTorch's own CSR product does not know
the symmetry; ``benchmarks/micro/spmm.py`` times both beside PyG's ``EdgeIndex``.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN2Conv

from benchmarks.harness.errors import require


def normalized_adjacency(
    edge_index: Tensor,  # [2, E]
    num_nodes: int,
) -> Tensor:  # [N, N], torch.sparse_csr
    r"""Undirected graph with self-loops, :math:`D^{-1/2} (A + I) D^{-1/2}` in fp32.

    Directions, repeated edges and given self-loops are dropped first; every node then has exactly one loop.

    Args:
        edge_index: Integer node pairs, in any order and direction.
        num_nodes: N.

    Returns:
        The matrix, with sorted int64 indices.

    Raises:
        ValueError: When an index is not in [0, N), or the result is not symmetric.
    """
    sparse = require("scipy.sparse")
    row, col = edge_index.cpu().numpy()
    if row.size and (min(row.min(), col.min()) < 0 or max(row.max(), col.max()) >= num_nodes):
        low, high = min(row.min(), col.min()), max(row.max(), col.max())
        raise ValueError(
            f"'edge_index' must hold node numbers in [0, {num_nodes}) (got {low} to {high}). "
            "Check the edge list against the number of nodes."
        )
    keep = row != col
    pairs = np.concatenate([row[keep], col[keep]]), np.concatenate([col[keep], row[keep]])
    graph = sparse.csr_matrix((np.ones(pairs[0].size), pairs), shape=(num_nodes, num_nodes))
    graph.sum_duplicates()
    graph.data[:] = 1.0
    graph = (graph + sparse.identity(num_nodes, format="csr")).tocsr()
    scale = sparse.diags(np.asarray(graph.sum(axis=1)).ravel() ** -0.5)
    graph = (scale @ graph @ scale).tocsr().astype(np.float32)
    graph.sort_indices()
    adjacency = csr_tensor(graph)
    if not is_symmetric(adjacency):
        raise ValueError("'edge_index' must give a symmetric matrix (got another one). Report this as a bug.")
    return adjacency


def is_symmetric(
    adjacency: Tensor,  # [N, N], torch.sparse_csr
) -> bool:
    """Whether structure and values equal those of the transpose, bit for bit."""
    sparse = require("scipy.sparse")
    parts = (adjacency.values(), adjacency.col_indices(), adjacency.crow_indices())
    matrix = sparse.csr_matrix(tuple(part.cpu().numpy() for part in parts), shape=tuple(adjacency.shape))
    return matrix.shape[0] == matrix.shape[1] and (matrix != matrix.T).nnz == 0


class _SymmetricSpmm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(adjacency)
        return adjacency @ x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, Tensor | None]:
        (adjacency,) = ctx.saved_tensors
        # Through `apply` again, so that a second derivative is right as well.
        return None, _SymmetricSpmm.apply(adjacency, grad_outputs[0]) if ctx.needs_input_grad[1] else None


def symmetric_spmm(
    adjacency: Tensor,  # [N, N], torch.sparse_csr
    x: Tensor,  # [N, C]
) -> Tensor:  # [N, C]
    """Exact product with a symmetric sparse matrix that needs no gradient; keeps only the matrix.

    Args:
        adjacency: The matrix.  Its symmetry is not checked here, since that costs more than the product:
            `normalized_adjacency` checks it once.
        x: Dense features of the same dtype.

    Returns:
        ``adjacency @ x``.
    """
    return _SymmetricSpmm.apply(adjacency, x)


def use_symmetric_product(model: nn.Module) -> nn.Module:
    """Let every GCN2 convolution of a model propagate by `symmetric_spmm`.

    The product is set on the instances.  A subclass would read better, but converters recognise layers by
    their exact type, and the instance attribute stays in force when a converter changes a layer's class.

    Args:
        model: Changed in place; all its convolutions must be given a symmetric adjacency.

    Returns:
        The same model.
    """
    for module in model.modules():
        if isinstance(module, GCN2Conv):
            module.message_and_aggregate = symmetric_spmm
    return model


def csr_tensor(matrix: Any) -> Tensor:
    """A scipy CSR matrix as a tensor that shares its values, with int64 indices."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(beta state|invariant checks).*")  # said once per process
        return torch.sparse_csr_tensor(
            torch.from_numpy(matrix.indptr.astype(np.int64)),
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            matrix.shape,
            check_invariants=True,
        )
