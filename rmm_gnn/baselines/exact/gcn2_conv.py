"""Drop-in for torch_geometric.nn.GCN2Conv."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Parameter

from rmm_gnn.baselines.exact.config import DEFAULT_BITS, DEFAULT_KEPT_FRAC, ExactConfig
from rmm_gnn.baselines.exact.layers import training_linear
from rmm_gnn.nn._open_gcn2_conv import OpenGCN2Conv


class ExactGCN2Conv(OpenGCN2Conv):
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

    def _product(self, h: Tensor, weight: Parameter) -> Tensor:
        return training_linear(h, self._matrix(weight), None, config=self.config, training=True, parameter=weight)

    def _product_of_x_0(self, x_0: Tensor, weight: Parameter) -> Tensor:
        return self._product(self.alpha * x_0, weight)
