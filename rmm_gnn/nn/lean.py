"""Activation functions and dropout that keep bits: drop-ins for PyTorch's modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import rmm_gnn.functional as lean
from rmm_gnn._validation import check_probability
from rmm_gnn.config import RMMConfig, resolve_config


class LeanModule(torch.nn.Module):
    """Takes the arguments of the module it stands for and, by keyword, ``config``; the same in ``eval()``."""

    config: RMMConfig

    def __init__(self, *args: Any, config: RMMConfig | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config = resolve_config(config)


class LeanReLU(LeanModule, torch.nn.ReLU):
    """``torch.nn.ReLU`` that keeps one bit for every entry; output and gradient are exact."""

    def forward(self, input: Tensor) -> Tensor:
        return lean.relu(input, self.inplace, backend=self.config.backend) if self.training else super().forward(input)


class LeanLeakyReLU(LeanModule, torch.nn.LeakyReLU):
    """``torch.nn.LeakyReLU`` that keeps one bit for every entry; output and gradient are exact."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return lean.leaky_relu(input, self.negative_slope, self.inplace, backend=self.config.backend)


class LeanDropout(LeanModule, torch.nn.Dropout):
    """``torch.nn.Dropout`` that keeps a seed instead of a mask; the gradient is exact."""

    def forward(self, input: Tensor) -> Tensor:
        return lean.dropout(input, self.p, self.training, self.inplace, backend=self.config.backend)


class LeanReLUDropout(LeanModule):
    """ReLU, then dropout, with one bit for every entry in all; output and gradient are exact.

    Args:
        p: Probability of an entry to be dropped.
        config: Of it, ``backend`` is read.
    """

    def __init__(self, p: float = 0.5, *, config: RMMConfig | None = None) -> None:
        super().__init__(config=config)
        self.p = check_probability(p)

    def forward(self, input: Tensor) -> Tensor:
        return lean.relu_dropout(input, self.p, backend=self.config.backend) if self.training else torch.relu(input)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class LeanActivation(LeanModule):
    """What the activations with a coded derivative share."""

    def extra_repr(self) -> str:
        settings = super().extra_repr()
        return f"{settings}, " * bool(settings) + f"act_codec={self.config.act_codec!r}"


class LeanGELU(LeanActivation, torch.nn.GELU):
    """``torch.nn.GELU`` that keeps its derivative in ``config.act_codec``; the gradient is unbiased."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return lean.gelu(input, self.approximate, codec=self.config.act_codec, backend=self.config.backend)


class LeanSiLU(LeanActivation, torch.nn.SiLU):
    """``torch.nn.SiLU`` that keeps its derivative in ``config.act_codec``; the gradient is unbiased."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return lean.silu(input, self.inplace, codec=self.config.act_codec, backend=self.config.backend)


class LeanELU(LeanActivation, torch.nn.ELU):
    """``torch.nn.ELU`` that keeps its derivative in ``config.act_codec``; the gradient is unbiased."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return lean.elu(input, self.alpha, self.inplace, codec=self.config.act_codec, backend=self.config.backend)
