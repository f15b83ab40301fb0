"""Drop-in for torch_geometric.nn.GCN2Conv."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Parameter
from torch_geometric.nn import GCN2Conv
from torch_geometric.typing import Adj, OptPairTensor, OptTensor, SparseTensor

from rmm_gnn.baselines.exact.config import DEFAULT_BITS, DEFAULT_KEPT_FRAC, ExactConfig
from rmm_gnn.baselines.exact.layers import training_linear
from rmm_gnn.nn import RMMGCN2Conv


class ExactGCN2Conv(GCN2Conv):
    r"""``torch_geometric.nn.GCN2Conv`` whose products keep their inputs projected along features and in few bits.

    .. math::
        \mathbf{X}^{\prime} = \left( (1 - \alpha) \mathbf{\hat{P}}\mathbf{X} + \alpha \mathbf{X^{(0)}}\right)
        \left( (1 - \beta) \mathbf{I} + \beta \mathbf{\Theta} \right)

    The output and the gradients of ``x``, ``x_0`` and the edge weights are exact; the gradients of the weights are
    unbiased estimates.  With ``shared_weights=False`` each of the two products keeps its own input, so
    :math:`\alpha \mathbf{X^{(0)}}` is kept anew in every layer, as EXACT does.  In ``eval()`` this is PyG's layer.

    Args:
        channels: Size of each input and output sample.
        alpha: Strength of the initial residual connection.
        theta: Sets the strength of the identity mapping, beta = log(theta / layer + 1); goes with ``layer``.
        layer: The layer in which this module is executed.
        shared_weights: If False, use a weight of its own for ``x_0`` ("GCNII*").
        cached: Cache the normalised adjacency of the first call.
        add_self_loops: Add self-loops before normalising.
        normalize: Whether to add self-loops and apply symmetric normalisation.
        kept_frac: Share of the features to keep.
        bits: Bits of a kept value, or None.
        **kwargs: Arguments of ``torch_geometric.nn.conv.MessagePassing``.

    Shapes:
        - **input:**
          node features :math:`(|\mathcal{V}|, F)`,
          initial node features :math:`(|\mathcal{V}|, F)`,
          edge indices :math:`(2, |\mathcal{E}|)` or sparse matrix :math:`(|\mathcal{V}|, |\mathcal{V}|)`,
          edge weights :math:`(|\mathcal{E}|)` *(optional)*
        - **output:** node features :math:`(|\mathcal{V}|, F)`

    Raises:
        ValueError: If a value is out of range.
        TypeError: If an argument is of the wrong type.

    Example:
        >>> ExactGCN2Conv(16, alpha=0.1)
        ExactGCN2Conv(16, alpha=0.1, beta=1.0, kept_frac=0.125, bits=2)
    """

    config: ExactConfig
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
        kept_frac: float = DEFAULT_KEPT_FRAC,
        bits: int | None = DEFAULT_BITS,
        **kwargs: Any,
    ) -> None:
        super().__init__(channels, alpha, theta, layer, shared_weights, cached, add_self_loops, normalize, **kwargs)
        self.config = ExactConfig(kept_frac, bits)

    def forward(self, x: Tensor, x_0: Tensor, edge_index: Adj, edge_weight: OptTensor = None) -> Tensor:
        if not self.training:
            return super().forward(x, x_0, edge_index, edge_weight)
        if self.normalize:
            edge_index, edge_weight = self._normalized(x, edge_index, edge_weight)

        # propagate_type: (x: Tensor, edge_weight: OptTensor)
        h = self.propagate(edge_index, x=x, edge_weight=edge_weight)
        x_0 = self.alpha * x_0[: h.size(0)]

        # h is our own: scaling it in place keeps nothing and leaves the caller's x alone.
        h.mul_(1 - self.alpha)
        if self.weight2 is None:
            return self._product(h.add_(x_0), self.weight1)
        return self._product(h, self.weight1) + self._product(x_0, self.weight2)

    def _product(self, x: Tensor, weight: Parameter) -> Tensor:  # [N, C] -> [N, C]
        return training_linear(x, self._matrix(weight), None, config=self.config, training=True, parameter=weight)

    _matrix = RMMGCN2Conv._matrix
    _normalized = RMMGCN2Conv._normalized

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.config.extra_repr()})"
