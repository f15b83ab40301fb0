"""Drop-in for torch_geometric.nn.GCN2Conv."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import Parameter

from rmm_gnn.config import RMMConfig, resolve_config
from rmm_gnn.functional import anchored_linear, shared_input_linear
from rmm_gnn.nn._open_gcn2_conv import OpenGCN2Conv
from rmm_gnn.nn._training import SketchingLayer, training_linear
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sketches import Sketch


class RMMGCN2Conv(SketchingLayer, OpenGCN2Conv):
    r"""``torch_geometric.nn.GCN2Conv`` that keeps a sketch of the propagated features for the weight gradient.

    .. math::
        \mathbf{X}^{\prime} = \left( (1 - \alpha) \mathbf{\hat{P}}\mathbf{X} + \alpha \mathbf{X^{(0)}}\right)
        \left( (1 - \beta) \mathbf{I} + \beta \mathbf{\Theta} \right)

    The output and the gradients of ``x``, ``x_0`` and the edge weights are exact; the gradient of
    :math:`\mathbf{\Theta}` is an unbiased estimate.  With ``shared_weights=False`` the second product keeps ``x_0``
    itself, also under autocast, or one code of it (``config.x0_codec``): once for all layers that are given the same
    tensor, where PyG keeps a scaled copy in every layer.  The gradient of ``weight2`` is exact, or unbiased with an int
    codec.  In ``eval()`` this is PyG's layer.

    With c = ``channels`` and N nodes, a training call keeps ``config.saved_bytes(N, c)`` bytes and refers to ``x_0``;
    unless beta is 1, where the weights themselves serve, it keeps a c x c matrix for each of them too.

    With ``config.anchor`` the propagated features are sketched less their linear fit on ``x_0``, see
    ``rmm_gnn.functional.anchored_linear``: 0.6 to 0.8 of the noise on the networks tried.  A call then keeps the fit
    too, c x c numbers of 4 bytes (8 in float64), and ``x_0`` or its code wherever ``weight1`` is trained.  With
    ``shared_weights=True``, where nothing else needs it in backward, that is N c numbers once for all layers
    (N (ceil(c bits / 8) + 4) bytes in an int codec), and one product of the size of the layer's more.

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

    def _products(self, h: Tensor, x_0: Tensor) -> Tensor:
        if not (self.config.anchor and self.weight1.requires_grad):
            return super()._products(h, x_0)
        matrix_0 = None if self.weight2 is None else self._matrix(self.weight2)
        return anchored_linear(
            h, self._matrix(self.weight1), x_0, matrix_0, scale=self.alpha, config=self.config, seed=draw_seed(h)
        )

    def _product(self, h: Tensor, weight: Parameter) -> Tensor:
        return training_linear(self, h, self._matrix(weight), None, parameter=weight)

    def _product_of_x_0(self, x_0: Tensor, weight: Parameter) -> Tensor:
        return shared_input_linear(x_0, self._matrix(weight), scale=self.alpha, codec=self.config.x0_codec)
