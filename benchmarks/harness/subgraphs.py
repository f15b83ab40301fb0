"""Sampled edges as the matrices that a model multiplies with.

A batch shall estimate what the full graph would compute.  The full, normalised matrix has entries A_ij; of row i a
loader keeps the entry of the node itself, and any other with probability p_ij once the row is there.  With the entry
A_ij / p_ij in its place (weights that are ``scaled``) the product of a row with given features is right on average, and
equal to the full graph's where nothing is dropped.  ``plain`` weights are A_ij, so that the product is too small.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN2Conv

from benchmarks.harness.errors import require
from benchmarks.harness.propagation import csr_tensor


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, adjacency: Tensor, transpose: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(transpose)
        return adjacency @ x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, Tensor | None]:
        (transpose,) = ctx.saved_tensors
        return None, None, transpose @ grad_outputs[0] if ctx.needs_input_grad[2] else None


def with_transpose(adjacency: Tensor, transpose: Tensor) -> Tensor:
    """Let a matrix carry its transpose, which `product` multiplies with in backward."""
    adjacency.transposed = transpose  # type: ignore[attr-defined]
    return adjacency


def transpose_of(adjacency: Tensor) -> Tensor | None:
    """The transpose that a matrix carries, or None."""
    return getattr(adjacency, "transposed", None)


def product(
    adjacency: Tensor,  # [n, m], torch.sparse_csr
    x: Tensor,  # [m, C]
) -> Tensor:  # [n, C]
    """Product with a matrix that carries its transpose; keeps only that.

    Raises:
        ValueError: When x needs a gradient and the matrix carries no transpose.
    """
    transpose = transpose_of(adjacency)
    if transpose is None:
        if x.requires_grad and torch.is_grad_enabled():
            raise ValueError("'adjacency' must carry its transpose (got one that does not). Use with_transpose.")
        return adjacency @ x
    return _Product.apply(adjacency, transpose, x)


def use_product(model: nn.Module) -> nn.Module:
    """Let every GCN2 convolution of a model propagate by `product`, as ``use_symmetric_product`` does by another."""
    for module in model.modules():
        if isinstance(module, GCN2Conv):
            module.message_and_aggregate = product
    return model


def scaled_for_sample(
    weight: Tensor,  # [E]
    row: Tensor,  # [E]
    degree: Tensor,  # [n]: neighbours in the full graph
) -> Tensor:  # [E]
    """Weights over the share of its neighbours that a node's sample, uniform and without replacement, holds."""
    sampled = torch.bincount(row, minlength=degree.numel())
    return weight * (degree.to(weight.dtype) / sampled.clamp(min=1))[row]


def layered(
    row: Tensor,  # [E]
    col: Tensor,  # [E]
    weight: Tensor,  # [E]
    loops: Tensor,  # [n]: the entries of the diagonal
    rows: list[int],  # [hops + 1]: nodes within 0, 1, ... hops of the seeds
    num_layers: int,
) -> tuple[Tensor, ...]:
    """One matrix a layer [n_out, n_in], with the rows that later layers need and no more; each carries its transpose.

    The last layer has the seeds' rows, the one before it those within one hop, and so on.  Layers that are further from
    the end than there are hops have all rows, where the nodes found last have no neighbour but themselves.
    """
    sparse = require("scipy.sparse")
    last, size = len(rows) - 1, rows[-1]
    own = np.arange(size)
    values = np.concatenate([weight.numpy(), loops.numpy()])
    places = np.concatenate([row.numpy(), own]), np.concatenate([col.numpy(), own])
    whole = sparse.csr_matrix((values, places), shape=(size, size))
    made: dict[tuple[int, int], Tensor] = {}
    matrices = []
    for layer in range(num_layers):
        after = num_layers - layer - 1
        shape = rows[min(last, after)], rows[min(last, after + 1)]
        if shape not in made:
            part = whole[: shape[0], : shape[1]]
            made[shape] = with_transpose(csr_tensor(part), csr_tensor(part.T.tocsr()))
        matrices.append(made[shape])
    return tuple(matrices)


def induced(
    row: Tensor,  # [E]
    col: Tensor,  # [E]
    weight: Tensor,  # [E]
    loops: Tensor,  # [n]: the entries of the diagonal
    symmetric: bool = True,
) -> Tensor:  # [n, n], torch.sparse_csr
    """The matrix of a subgraph for all layers; carries its transpose unless it is its own."""
    sparse = require("scipy.sparse")
    own = np.arange(loops.numel())
    values = np.concatenate([weight.numpy(), loops.numpy()])
    places = np.concatenate([row.numpy(), own]), np.concatenate([col.numpy(), own])
    matrix = sparse.csr_matrix((values, places), shape=(own.size, own.size))
    made = csr_tensor(matrix)
    # Another object with the same memory: one that carried itself would live until garbage is collected.
    return with_transpose(made, made.detach() if symmetric else csr_tensor(matrix.T.tocsr()))


def moved(adjacency: Tensor, device: torch.device) -> Tensor:
    """A matrix and the transpose that it carries, on another device."""
    transpose = transpose_of(adjacency)
    made = adjacency.to(device)
    if transpose is None:
        return made
    shared = transpose.values().data_ptr() == adjacency.values().data_ptr()
    return with_transpose(made, made.detach() if shared else transpose.to(device))
