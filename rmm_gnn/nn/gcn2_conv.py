"""Drop-in for torch_geometric.nn.GCN2Conv."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn import GCN2Conv
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, SparseTensor

from rmm_gnn.config import RMMConfig, resolve_config
from rmm_gnn.functional import shared_input_linear
from rmm_gnn.nn._training import training_linear
from rmm_gnn.sketches import Sketch


class RMMGCN2Conv(GCN2Conv):
    r"""``torch_geometric.nn.GCN2Conv`` that keeps a sketch of the propagated features for the weight gradient.

    .. math::
        \mathbf{X}^{\prime} = \left( (1 - \alpha) \mathbf{\hat{P}}\mathbf{X} + \alpha \mathbf{X^{(0)}}\right)
        \left( (1 - \beta) \mathbf{I} + \beta \mathbf{\Theta} \right)

    The output and the gradients of ``x``, ``x_0`` and the edge weights are exact; the gradient of
    :math:`\mathbf{\Theta}` is an unbiased estimate.  With ``shared_weights=False`` the second product keeps ``x_0``
    itself, also under autocast, or one code of it (``config.x0_codec``): once for all layers that are given the same
    tensor, where PyG keeps a scaled copy in every layer.  The gradient of ``weight2`` is exact, or unbiased with an int
    codec.  In ``eval()`` this is PyG's layer.

    With c = ``channels`` and N nodes, a training call keeps ``config.saved_bytes(N, c)`` bytes, a c x c matrix for
    ``weight1`` unless beta is 1 (the weight itself serves then) and one for ``weight2``, and it refers to ``x_0``.

    Args:
        channels: Size of each input and output sample.
        alpha: Strength of the initial residual connection.
        theta: Sets the strength of the identity mapping, beta = log(theta / layer + 1); goes with ``layer``.
        layer: The layer in which this module is executed.
        shared_weights: If False, use a weight of its own for ``x_0`` ("GCNII*").
        cached: Cache the normalised adjacency of the first call.
        add_self_loops: Add self-loops before normalising.
        normalize: Whether to add self-loops and apply symmetric normalisation.
        config: What to keep; ``RMMConfig()`` if None.
        rate: Shorthand for ``config=RMMConfig(rate=rate)``.
        sketch: Shorthand for ``config=RMMConfig(sketch=sketch)``; goes with ``rate``.
        **kwargs: Arguments of ``torch_geometric.nn.conv.MessagePassing``.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F)`,
          initial node features :math:`(|\mathcal{V}|, F)`,
          edge indices :math:`(2, |\mathcal{E}|)` or sparse matrix :math:`(|\mathcal{V}|, |\mathcal{V}|)`,
          edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, F)`

    Raises:
        ValueError: If ``config`` is given together with ``rate`` or ``sketch``, or a value is out of range.
        TypeError: If an argument is of the wrong type.

    Example:
        >>> RMMGCN2Conv(16, alpha=0.1, rate=0.1)
        RMMGCN2Conv(16, alpha=0.1, beta=1.0, rate=0.1)
    """

    config: RMMConfig
    _cached_edge_index: OptPairTensor | None
    _cached_adj_t: SparseTensor | None

    def __init__(
        self,
        channels: int,
        alpha: float,
        theta: float | None = None,
        layer: int | None = None,
        shared_weights: bool = True,
        cached: bool = False,
        add_self_loops: bool = True,
        normalize: bool = True,
        *,
        config: RMMConfig | None = None,
        rate: float | None = None,
        sketch: str | Sketch | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(channels, alpha, theta, layer, shared_weights, cached, add_self_loops, normalize, **kwargs)
        self.config = resolve_config(config, rate=rate, sketch=sketch)

    def forward(self, x: Tensor, x_0: Tensor, edge_index: Adj, edge_weight: OptTensor = None) -> Tensor:
        if not self.training:
            return super().forward(x, x_0, edge_index, edge_weight)
        if self.normalize:
            edge_index, edge_weight = self._normalized(x, edge_index, edge_weight)

        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        h = self.propagate(edge_index, x=x, edge_weight=edge_weight)
        if x_0.size(0) != h.size(0):  # a slice would be another tensor, and its code not shared
            x_0 = x_0[: h.size(0)]

        # h is our own: scaling it in place keeps nothing and leaves the caller's x alone.
        h.mul_(1 - self.alpha)
        if self.weight2 is None:
            h.add_(x_0, alpha=self.alpha)
            return self._sketched_product(h)
        return self._sketched_product(h) + shared_input_linear(
            x_0, self.alpha * self._matrix(self.weight2), codec=self.config.x0_codec
        )

    def _sketched_product(self, h: Tensor) -> Tensor:  # [N, C] -> [N, C]
        return training_linear(
            h, self._matrix(self.weight1), None, config=self.config, training=True, parameter=self.weight1
        )

    def _matrix(self, weight: Parameter) -> Tensor:  # [C, C]
        """The transpose of (1 - beta) I + beta Theta: one product does the work of PyG's ``addmm``."""
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
