"""Exact evaluation of the full graph, layer by layer and a chunk of nodes at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.model import GCN2


@torch.no_grad()
def full_logits(model: GCN2, dataset: NodeDataset, device: torch.device, chunk: int) -> Tensor:  # [N, classes]
    """What the model in eval mode returns for the whole graph, to rounding, on CPU.

    The data stay on CPU.  There are three matrices [N, C] at a time: x_0, the output of a layer, and that of the next
    one.  On another device than CPU there is a chunk, its matrix, and those rows of the former layer that it reads.

    Args:
        model: On ``device``; is in eval mode afterwards.
        dataset: On CPU.
        device: Where it is computed.
        chunk: Nodes at a time.
    """
    model.eval()
    num_nodes = dataset.num_nodes
    x_0 = torch.cat([model.first(dataset.x[part].to(device)).cpu() for part in _parts(num_nodes, chunk)])
    x = x_0
    for layer in range(len(model.convs)):
        made = torch.empty_like(x)
        for part in _parts(num_nodes, chunk):
            # Only what is read is copied to another device.
            matrix, read = rows_of(dataset.adjacency, part, compact=device.type != "cpu")
            inputs = x if read is None else x[read].to(device)
            made[part] = model.block(layer, inputs, x[part].to(device), x_0[part].to(device), matrix.to(device)).cpu()
        x = made
    return torch.cat([model.lin_out(x[part].to(device)).cpu() for part in _parts(num_nodes, chunk)])


def evaluate(model: GCN2, dataset: NodeDataset, device: torch.device, chunk: int, *index: Tensor) -> list[float]:
    """Accuracy over the nodes in each ``index``."""
    logits = full_logits(model, dataset, device, chunk)
    return [dataset.evaluate(logits, nodes) for nodes in index]


def _parts(num_nodes: int, chunk: int) -> Iterator[slice]:
    for start in range(0, num_nodes, chunk):
        yield slice(start, min(start + chunk, num_nodes))


def rows_of(adjacency: Tensor, part: slice, *, compact: bool) -> tuple[Tensor, Tensor | None]:
    """Some rows of a CSR matrix [n, m].

    Args:
        adjacency: The matrix.
        part: The rows, one after the other.
        compact: Leave out columns without an entry.

    Returns:
        The rows, and the numbers of their columns; None for all of them.
    """
    starts = adjacency.crow_indices()[part.start : part.stop + 1]
    entries = slice(int(starts[0]), int(starts[-1]))
    columns, values = adjacency.col_indices()[entries], adjacency.values()[entries]
    read, size = None, adjacency.shape[1]
    if compact:
        read, columns = columns.unique(return_inverse=True)
        size = len(read)
    shape = (part.stop - part.start, size)
    return torch.sparse_csr_tensor(starts - starts[0], columns, values, shape, check_invariants=False), read
