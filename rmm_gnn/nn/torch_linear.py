"""Drop-in for torch.nn.Linear."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.config import RMMConfig, resolve_config
from rmm_gnn.nn._training import SketchingLayer, training_linear
from rmm_gnn.sketches import Sketch


class RMMTorchLinear(SketchingLayer, torch.nn.Linear):
    r"""``torch.nn.Linear`` that keeps a sketch of its input for the weight gradient.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}, \qquad
        \partial \mathbf{W} \approx (\mathbf{S}^{\top} \mathbf{Y})^{\top} (\mathbf{S}^{\top} \mathbf{X})

    The output and the gradients of input and bias are exact; the weight gradient is an unbiased estimate.  With a
    frozen weight, or in ``eval()`` outside of ``compress_activations``, it is ``torch.nn.Linear``: nothing is kept and
    nothing drawn.  An input that fused attention keeps, its output, is kept with it, and the gradient is exact.

    Args:
        in_features: Size of each input sample.
        out_features: Size of each output sample.
        bias: Whether to learn an additive bias.
        device: Device of the parameters.
        dtype: Type of the parameters.
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
        >>> RMMTorchLinear(16, 32, rate=0.1)
        RMMTorchLinear(in_features=16, out_features=32, bias=True, rate=0.1)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        config: RMMConfig | None = None,
        rate: float | None = None,
        sketch: str | Sketch | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.config = resolve_config(config, rate=rate, sketch=sketch, positional=bias)

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, config: RMMConfig | None = None) -> RMMTorchLinear:
        """Return a layer that shares the parameters (the same objects) and the mode of ``linear``.

        Hooks stay with ``linear``; ``convert_to_rmm`` swaps layers inside a model and keeps them.
        """
        layer = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta", config=config)
        layer.weight, layer.bias = linear.weight, linear.bias
        return layer.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        return training_linear(self, input, self.weight, self.bias, parameter=self.weight)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.config.extra_repr()}"
