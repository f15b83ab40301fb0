"""Drop-in for the linear layer of GPT-2, which stores its weight transposed."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn.config import RMMConfig, resolve_config
from rmm_gnn.nn._training import SketchingLayer, training_linear
from rmm_gnn.sketches import Sketch

try:
    from transformers.pytorch_utils import Conv1D
except ImportError as error:
    raise ImportError(
        "RMMConv1D needs transformers, which is not installed. Run: pip install -e '.[transformers]'"
    ) from error


class RMMConv1D(SketchingLayer, Conv1D):
    r"""``transformers.pytorch_utils.Conv1D`` that keeps a sketch of its input for the weight gradient.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W} + \mathbf{b}, \qquad
        \partial \mathbf{W} \approx (\mathbf{S}^{\top} \mathbf{X})^{\top} (\mathbf{S}^{\top} \mathbf{Y})

    The output and the gradients of input and bias are exact; the weight gradient is an unbiased estimate.  With a
    frozen weight, or in ``eval()`` outside of ``compress_activations``, it is ``Conv1D``: nothing is kept and nothing
    drawn.

    Args:
        nf: Size of each output sample.
        nx: Size of each input sample.
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
        >>> RMMConv1D(32, 16, rate=0.1)
        RMMConv1D(nf=32, nx=16, rate=0.1)
    """

    stands_for: ClassVar[type[torch.nn.Module]] = Conv1D

    def __init__(
        self,
        nf: int,
        nx: int,
        *,
        config: RMMConfig | None = None,
        rate: float | None = None,
        sketch: str | Sketch | None = None,
    ) -> None:
        super().__init__(nf, nx)
        self.config = resolve_config(config, rate=rate, sketch=sketch)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.weight.requires_grad):
            return super().forward(x)
        return training_linear(self, x, self.weight.t(), self.bias, parameter=self.weight)

    def __repr__(self) -> str:
        return f"RMMConv1D(nf={self.nf}, nx={self.nx}, {self.config.extra_repr()})"
