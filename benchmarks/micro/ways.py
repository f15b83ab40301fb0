"""The ways to run one linear layer: exact, with what others do for memory, and with a sketch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.harness.offload import offload
from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.baselines.exact import ExactConfig, exact_linear

LINEAR = "torch.nn.Linear"
CHECKPOINT = "checkpoint"
OFFLOAD = "save_on_cpu"
EXACT = "EXACT, INT2"
PAPER = "paper's Gaussian, S whole"
Layer = Callable[[Tensor], Tensor]


class PaperGaussian(torch.autograd.Function):
    """Algorithm 1 as published: S [B, k] is made whole in forward and made again in backward.

    S is redrawn at every call here, as the algorithm says.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, rate: float) -> Tensor:
        ctx.size = max(1, round(rate * x.shape[0]))
        ctx.seed = int(torch.randint(2**62, ()))
        ctx.save_for_backward(weight, _whole_gaussian(x, ctx.size, ctx.seed).T @ x)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        weight, x_sketch = ctx.saved_tensors
        (grad,) = grad_outputs
        grad_sketch = _whole_gaussian(grad, ctx.size, ctx.seed).T @ grad
        return grad @ weight, grad_sketch.T @ x_sketch, grad.sum(0), None


def _whole_gaussian(like: Tensor, size: int, seed: int) -> Tensor:  # [B, N] -> [B, k]
    generator = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape[0], size, device=like.device, generator=generator).mul_(size**-0.5)


def peers(linear: nn.Linear) -> dict[str, Layer]:
    """The exact layer and what others do for memory, by name, with the weights of ``linear``."""
    device = linear.weight.device.type

    def offloaded(x: Tensor) -> Tensor:
        with offload(device):
            return linear(x)

    return {
        LINEAR: linear,
        CHECKPOINT: lambda x: checkpoint(linear, x, use_reentrant=False),
        OFFLOAD: offloaded,
        EXACT: lambda x: exact_linear(x, linear.weight, linear.bias, config=ExactConfig()),
    }


def papers(linear: nn.Linear, num_rows: int, rates: Sequence[float], max_entries: float) -> dict[str, Layer]:
    """The published method at these rates, where S has no more entries than ``max_entries``."""
    return {
        f"{PAPER}, {rate:g}": lambda x, rate=rate: PaperGaussian.apply(x, linear.weight, linear.bias, rate)
        for rate in rates
        if rate * num_rows**2 <= max_entries
    }


def sketched(
    linear: nn.Linear, sketches: Sequence[str], rates: Sequence[float], codecs: Sequence[str], backend: str
) -> dict[str, Layer]:
    """``rmm_linear`` with every sketch, rate and codec, by name."""
    layers: dict[str, Layer] = {}
    for sketch in sketches:
        for rate in rates:
            for codec in codecs:
                config = RMMConfig(rate=rate, sketch=sketch, codec=codec, backend=backend)
                name = f"{sketch} {rate:g}" + ("" if codec == "fp32" else f" {codec}")
                layers[name] = lambda x, c=config: rmm_linear(x, linear.weight, linear.bias, config=c)
    return layers
