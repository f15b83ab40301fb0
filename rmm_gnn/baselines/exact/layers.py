"""Drop-ins for the layers of PyTorch and for PyG's Linear; in ``eval()`` each is the layer it stands for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.nn
from torch import Tensor

from rmm_gnn.baselines.exact.activations import exact_elu, exact_leaky_relu, exact_relu
from rmm_gnn.baselines.exact.config import DEFAULT_BITS, DEFAULT_KEPT_FRAC, ExactConfig
from rmm_gnn.baselines.exact.context import exact_batch_norms
from rmm_gnn.baselines.exact.dropout import exact_dropout
from rmm_gnn.baselines.exact.linear import exact_linear
from rmm_gnn.seeding import draw_seed


def training_linear(
    x: Tensor,  # [*, D]
    weight: Tensor,  # [M, D]
    bias: Tensor | None,
    *,
    config: ExactConfig,
    training: bool,
    parameter: Tensor,
) -> Tensor:  # [*, M]
    """Return x W^T + b; in training with a trainable ``parameter`` behind ``weight``, by ``exact_linear``.

    The seed is drawn in every such call, also with grad mode off, so that checkpointing does not freeze it.
    """
    if not (training and parameter.requires_grad):
        return F.linear(x, weight, bias)
    return exact_linear(x, weight, bias, config=config, seed=draw_seed(x))


class ExactLinear(torch.nn.Linear):
    r"""``torch.nn.Linear`` that keeps its input projected along features and in few bits.

    .. math::
        \mathbf{x}^{\prime} = \mathbf{x} \mathbf{W}^{\top} + \mathbf{b}, \qquad
        \partial \mathbf{W} \approx \mathbf{Y}^{\top} \mathbf{X}_q \mathbf{R}^{\top}

    The output and the gradients of input and bias are exact; the weight gradient is an unbiased estimate
    (``exact_linear`` has its variance).  In ``eval()`` or with a frozen weight it is ``torch.nn.Linear``.

    Args:
        in_features: Size of each input sample.
        out_features: Size of each output sample.
        bias: Whether to learn an additive bias.
        device: Device of the parameters.
        dtype: Type of the parameters.
        kept_frac: Share of the features to keep.
        bits: Bits of a kept value, or None.

    Shapes:
        - **input:** features :math:`(*, F_{in})`
        - **output:** features :math:`(*, F_{out})`

    Raises:
        ValueError: If a value is out of range.
        TypeError: If an argument is of the wrong type.

    Example:
        >>> ExactLinear(16, 32)
        ExactLinear(in_features=16, out_features=32, bias=True, kept_frac=0.125, bits=2)
    """

    config: ExactConfig

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        kept_frac: float = DEFAULT_KEPT_FRAC,
        bits: int | None = DEFAULT_BITS,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.config = ExactConfig(kept_frac, bits)

    def forward(self, input: Tensor) -> Tensor:
        return training_linear(
            input, self.weight, self.bias, config=self.config, training=self.training, parameter=self.weight
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.config.extra_repr()}"


class ExactPyGLinear(torch_geometric.nn.Linear):
    r"""``torch_geometric.nn.Linear`` that keeps its input projected along features and in few bits.

    Exact and estimated are the same as in ``ExactLinear``.

    Args:
        in_channels: Size of each input sample; lazily initialised if -1.
        out_channels: Size of each output sample.
        bias: Whether to learn an additive bias.
        weight_initializer: "glorot", "uniform", "kaiming_uniform" or None.
        bias_initializer: "zeros" or None.
        kept_frac: Share of the features to keep.
        bits: Bits of a kept value, or None.

    Shapes:
        - **input:** features :math:`(*, F_{in})`
        - **output:** features :math:`(*, F_{out})`

    Raises:
        ValueError: If a value is out of range.
        TypeError: If an argument is of the wrong type.

    Example:
        >>> ExactPyGLinear(16, 32)
        ExactPyGLinear(16, 32, bias=True, kept_frac=0.125, bits=2)
    """

    config: ExactConfig

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        weight_initializer: str | None = None,
        bias_initializer: str | None = None,
        *,
        kept_frac: float = DEFAULT_KEPT_FRAC,
        bits: int | None = DEFAULT_BITS,
    ) -> None:
        super().__init__(in_channels, out_channels, bias, weight_initializer, bias_initializer)
        self.config = ExactConfig(kept_frac, bits)

    def forward(self, x: Tensor) -> Tensor:
        return training_linear(
            x, self.weight, self.bias, config=self.config, training=self.training, parameter=self.weight
        )

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.config.extra_repr()})"


class ExactBatchNorm1d(torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` that keeps its input in few bits; ``exact_batch_norm`` says what is exact.

    Args:
        num_features: C.
        eps: Added to the variance.
        momentum: Weight of the batch in the running statistics, or None for their plain average.
        affine: Whether to learn scale and shift.
        track_running_stats: Whether to track running statistics.
        device: Device of parameters and statistics.
        dtype: Type of the parameters.
        bits: Bits of a kept value, or None.
        **kwargs: Further keyword arguments of ``torch.nn.BatchNorm1d``.

    Shapes:
        - **input:** :math:`(N, C)` or :math:`(N, C, L)`
        - **output:** the same

    Raises:
        ValueError: If ``bits`` is out of range.
        TypeError: If an argument is of the wrong type.

    Example:
        >>> ExactBatchNorm1d(16, bits=2).config.bits
        2
    """

    config: ExactConfig

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        bits: int | None = DEFAULT_BITS,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, **kwargs)
        self.config = ExactConfig(bits=bits)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        # Momentum and counters are PyTorch's business: its own forward runs, with its one functional call replaced.
        with exact_batch_norms(self.config.bits):
            return super().forward(input)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.config.bits}"


class ExactReLU(torch.nn.ReLU):
    """``torch.nn.ReLU`` that keeps one bit for every entry; never in place."""

    def forward(self, input: Tensor) -> Tensor:
        return exact_relu(input) if self.training else super().forward(input)


class ExactLeakyReLU(torch.nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` that keeps one bit for every entry; never in place."""

    def forward(self, input: Tensor) -> Tensor:
        return exact_leaky_relu(input, self.negative_slope) if self.training else super().forward(input)


class ExactDropout(torch.nn.Dropout):
    """``torch.nn.Dropout`` that keeps one bit for every entry; never in place."""

    def forward(self, input: Tensor) -> Tensor:
        return exact_dropout(input, self.p) if self.training else super().forward(input)


class ExactELU(torch.nn.ELU):
    """``torch.nn.ELU`` that keeps its input in few bits; never in place.

    Args:
        alpha: Value at minus infinity, negated.
        inplace: Accepted and not acted upon.
        bits: Bits of a kept value, or None.

    Raises:
        ValueError: If ``bits`` is out of range.
        TypeError: If ``bits`` is of the wrong type.
    """

    config: ExactConfig

    def __init__(self, alpha: float = 1.0, inplace: bool = False, *, bits: int | None = DEFAULT_BITS) -> None:
        super().__init__(alpha, inplace)
        self.config = ExactConfig(bits=bits)

    def forward(self, input: Tensor) -> Tensor:
        return exact_elu(input, self.alpha, bits=self.config.bits) if self.training else super().forward(input)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bits={self.config.bits}"
