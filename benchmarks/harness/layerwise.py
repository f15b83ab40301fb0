"""Exact evaluation of the full graph, layer by layer and a chunk of nodes at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.model import GCN2


@torch.no_grad()
def logits_by_chunk(
    model: GCN2, dataset: NodeDataset, device: torch.device, chunk: int
) -> Iterator[Tensor]:  # [chunk, classes]
    """What the model in eval mode returns for the whole graph, to rounding, on CPU, a part of the nodes at a time.

    The data stay on CPU.  There are three matrices [N, C] at a time: x_0, the output of a layer, and that of the next
    one; only the last one is left when the first logits come.  On another device than CPU there is a chunk, its matrix,
    and those rows of the former layer that it reads.

    Args:
        model: On ``device``; is in eval mode afterwards.
        dataset: On CPU.
        device: Where it is computed.
        chunk: Nodes at a time.
    """
    model.eval()
    x = _last_layer(model, dataset, device, chunk)
    for part in _parts(dataset.num_nodes, chunk):
        yield model.lin_out(x[part].to(device)).cpu()


def evaluate(model: GCN2, dataset: NodeDataset, device: torch.device, chunk: int, *index: Tensor) -> list[float]:
    """Accuracy over the nodes in each ``index``; of each node only its class is held, not its logits."""
    predicted = torch.cat([logits.argmax(dim=-1) for logits in logits_by_chunk(model, dataset, device, chunk)])
    return [dataset.accuracy(dataset.y[nodes], predicted[nodes]) for nodes in index]


def peak_bytes(nodes: int, channels: int, classes: int, chunk: int) -> int:
    """Host memory that `evaluate` takes besides the data and what a chunk of a layer takes while it is computed.

    Args:
        nodes: N.
        channels: C.
        classes: Their number.
        chunk: Nodes at a time.
    """
    matrix = 4 * nodes * channels
    # Classes are int64, and there twice for a moment, in parts and as a whole.
    return max(3 * matrix, matrix + 2 * 8 * nodes + 4 * min(chunk, nodes) * classes)


def _last_layer(model: GCN2, dataset: NodeDataset, device: torch.device, chunk: int) -> Tensor:  # [N, C]
    """What the last Linear reads."""
    num_nodes = dataset.num_nodes
    x_0 = torch.empty(num_nodes, model.lin_in.out_features)
    for part in _parts(num_nodes, chunk):
        x_0[part] = model.first(dataset.x[part].to(device)).cpu()
    x = x_0
    for layer in range(len(model.convs)):
        made = torch.empty_like(x)
        for part in _parts(num_nodes, chunk):
            # Only what is read is copied to another device.
            matrix, read = rows_of(dataset.adjacency, part, compact=device.type != "cpu")
            inputs = x if read is None else x[read].to(device)
            made[part] = model.block(layer, inputs, x[part].to(device), x_0[part].to(device), matrix.to(device)).cpu()
            del inputs  # holds x, of which there shall not be two when the next layer is made
        x = made
    return x


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
