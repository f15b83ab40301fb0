"""Models whose memory the tests know, and a second way to count it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GAT, GCN2Conv, GraphSAGE

N, C = 300, 16
KIB = 1024


class Expression(nn.Module):
    """A function as a module, with the layers it uses."""

    def __init__(self, function: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


class GCN2Stack(nn.Module):
    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.lin = nn.Linear(C, C)
        self.convs = nn.ModuleList(GCN2Conv(C, 0.1, shared_weights=False) for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(C) for _ in range(layers))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = x_0 = self.lin(x).relu()
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.dropout(F.relu(norm(conv(x, x_0, adjacency)) + x), 0.1, self.training)
        return x


def features() -> Tensor:
    return torch.randn(N, C)


def edges() -> Tensor:
    return torch.randint(0, N, (2, 4 * N))


def adjacency() -> Tensor:
    dense = torch.zeros(N, N).index_put_(tuple(edges()), torch.tensor(1.0))
    return (dense + dense.T).to_sparse_csr()


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(C, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "sequential": lambda: (sequential(), (features(),)),
    "gcn2_csr": lambda: (GCN2Stack(), (features(), adjacency())),
    "gcn2_coo": lambda: (GCN2Stack(), (features(), edges())),
    "sage_csr": lambda: (GraphSAGE(C, 32, 2, 3), (features(), adjacency())),
    "sage_coo": lambda: (GraphSAGE(C, 32, 2, 3, dropout=0.5), (features(), edges())),
    "gat_coo": lambda: (GAT(C, 32, 2, 3), (features(), edges())),
}


def sum_over_saved_tensors(model: nn.Module, inputs: Iterable[Any], loss: Callable[[Any], Tensor] | None = None) -> int:
    """All that autograd is given to keep, each address once, besides the parts of parameters, buffers and inputs."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(*inputs)
        end = output.sum() if loss is None else loss(output)
    known = dict(part for tensor in [*model.parameters(), *model.buffers(), *inputs] for part in _parts(tensor))
    sizes = dict(part for tensor in saved for part in _parts(tensor))
    del end
    return sum(size for address, size in sizes.items() if address not in known)


def _parts(tensor: Tensor) -> list[tuple[int, int]]:
    if tensor.layout == torch.sparse_csr:
        dense = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout == torch.sparse_csc:
        dense = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    elif tensor.layout == torch.sparse_coo:
        dense = [tensor._indices(), tensor._values()]
    else:
        dense = [tensor]
    return [(part.untyped_storage().data_ptr(), part.untyped_storage().nbytes()) for part in dense]
