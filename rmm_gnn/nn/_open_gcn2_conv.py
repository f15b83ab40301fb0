"""GCN2 convolution whose products are left open: what the layers that keep little of their inputs share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn import GCN2Conv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, SparseTensor


class OpenGCN2Conv(GCN2Conv):
    """``torch_geometric.nn.GCN2Conv`` in ``eval()``; in training, a subclass says how the products are formed.

    One product with (1 - beta) I + beta Theta does the work of PyG's ``addmm``.
    """

    config: Any
    _cached_edge_index: OptPairTensor | None
    _cached_adj_t: SparseTensor | None

    def forward(self, x: Tensor, x_0: Tensor, edge_index: Adj, edge_weight: OptTensor = None) -> Tensor:
        if not self.training:
            return super().forward(x, x_0, edge_index, edge_weight)
        if self.normalize:
            edge_index, edge_weight = self._normalized(x, edge_index, edge_weight)

        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        h = self.propagate(edge_index, x=x, edge_weight=edge_weight)
        if x_0.size(0) != h.size(0):  # a slice would be another tensor, and what is kept of it not shared
            x_0 = x_0[: h.size(0)]

        # h is our own: scaling it in place keeps nothing and leaves the caller's x alone.
        h.mul_(1 - self.alpha)
        if self.weight2 is None:
            h.add_(x_0, alpha=self.alpha)
        return self._products(h, x_0)

    def _products(self, h: Tensor, x_0: Tensor) -> Tensor:  # [N, C], [N, C] -> [N, C]
        """Return the layer's output; with one weight, x_0 is in h already."""
        if self.weight2 is None:
            return self._product(h, self.weight1)
        return self._product(h, self.weight1) + self._product_of_x_0(x_0, self.weight2)

    def _product(self, h: Tensor, weight: Parameter) -> Tensor:  # [N, C], [C, C] -> [N, C]
        """Return h ((1 - beta) I + beta Theta)."""
        raise NotImplementedError

    def _product_of_x_0(self, x_0: Tensor, weight: Parameter) -> Tensor:  # [N, C], [C, C] -> [N, C]
        """Return alpha x_0 ((1 - beta) I + beta Theta)."""
        raise NotImplementedError

    def _matrix(self, weight: Parameter) -> Tensor:  # [C, C]
        """The transpose of (1 - beta) I + beta Theta."""
        if self.beta == 1.0:
            return weight.t()
        identity = torch.eye(self.channels, dtype=weight.dtype, device=weight.device)
        return torch.add((1 - self.beta) * identity, weight.t(), alpha=self.beta)

    def _normalized(self, x: Tensor, edge_index: Adj, edge_weight: OptTensor) -> tuple[Adj, OptTensor]:
        """Symmetrically normalised adjacency, from the cache of PyG's layer where there is one."""
        if isinstance(edge_index, Tensor):
            if self._cached_edge_index is not None:
                return self._cached_edge_index
            normalized = gcn_norm(
                edge_index, edge_weight, x.size(self.node_dim), False, self.add_self_loops, self.flow, dtype=x.dtype
            )
            if self.cached:
                self._cached_edge_index = normalized
            return normalized
        if isinstance(edge_index, SparseTensor):
            if self._cached_adj_t is not None:
                return self._cached_adj_t, edge_weight
            normalized = gcn_norm(
                edge_index, edge_weight, x.size(self.node_dim), False, self.add_self_loops, self.flow, dtype=x.dtype
            )
            if self.cached:
                self._cached_adj_t = normalized
            return normalized, edge_weight
        return edge_index, edge_weight

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.config.extra_repr()})"
