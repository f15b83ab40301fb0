"""Drop-in for torch_geometric.nn.Linear."""

from __future__ import annotations

from torch import Tensor
from torch_geometric.nn import Linear

from rmm_gnn.config import RMMConfig, resolve_config
from rmm_gnn.nn._training import SketchingLayer, training_linear
from rmm_gnn.sketches import Sketch


class RMMLinear(SketchingLayer, Linear):
    r"""``torch_geometric.nn.Linear`` that keeps a sketch of its input for the weight gradient.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}, \qquad
        \partial \mathbf{W} \approx (\mathbf{S}^{\top} \mathbf{Y})^{\top} (\mathbf{S}^{\top} \mathbf{X})

    The output and the gradients of input and bias are exact; the weight gradient is an unbiased estimate.  With a
    frozen weight, or in ``eval()`` outside of ``compress_activations``, it is PyG's ``Linear``: nothing is kept and
    nothing drawn.

    Args:
        in_channels: Size of each input sample; lazily initialised if -1.
        out_channels: Size of each output sample.
        bias: Whether to learn an additive bias.
        weight_initializer: "glorot", "uniform", "kaiming_uniform" or None.
        bias_initializer: "zeros" or None.
        config: What to keep; ``RMMConfig()`` if None.
        rate: Shorthand for ``config=RMMConfig(rate=rate)``.
        sketch: Shorthand for ``config=RMMConfig(sketch=sketch)``; goes with ``rate``.

    Shapes:
        - **input:** features :math:`(*, F_{in})`
        - **output:** features :math:`(*, F_{out})`

    Raises:
        ValueError: If ``config`` is given together with ``rate`` or ``sketch``, or a value is out of range.
        TypeError: If an argument is of the wrong type.

    Example:
        >>> RMMLinear(16, 32, rate=0.1)
        RMMLinear(16, 32, bias=True, rate=0.1)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        weight_initializer: str | None = None,
        bias_initializer: str | None = None,
        *,
        config: RMMConfig | None = None,
        rate: float | None = None,
        sketch: str | Sketch | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, bias, weight_initializer, bias_initializer)
        self.config = resolve_config(config, rate=rate, sketch=sketch, positional=bias)

    def forward(self, x: Tensor) -> Tensor:
        return training_linear(self, x, self.weight, self.bias, parameter=self.weight)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.config.extra_repr()})"
