"""Gradients that are averaged over ranks have the same mean and a noise that falls by the number of ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from rmm_gnn import RMMConfig
from rmm_gnn.diagnostics import rmm_variance
from rmm_gnn.nn import RMMTorchLinear
from tests.nn.recording import assert_unbiased

CONFIG = RMMConfig(rate=0.5)
_LAYERS = 64
_WIDTH = 24  # the noise is a sum over so many squared entries: a wide weight tells 5 % with few draws


class SideBySide(nn.Module):
    """Layers that read one tensor, each with a sketch of its own: a step gives as many independent estimates."""

    def __init__(self) -> None:
        super().__init__()
        layers = (
            RMMTorchLinear(_WIDTH, _WIDTH, bias=False, config=CONFIG, dtype=torch.float64) for _ in range(_LAYERS)
        )
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers])


def _samples(wrap: Callable[[nn.Module], nn.Module], draws: int) -> tuple[Tensor, Tensor, float]:
    """Gradients [draws, M, N] over identical shards, the exact one, and the closed form of one rank's noise."""
    torch.manual_seed(1)
    x, grad_output = torch.randn(2, 256, _WIDTH, dtype=torch.float64)
    grad_output = grad_output + x
    model, exact = wrap(SideBySide()), grad_output.T @ x
    drawn: list[Tensor] = []
    waiting: list[Tensor] = []

    def draw() -> Tensor:
        if not waiting:
            model.zero_grad()
            (model(x) * grad_output).sum().backward()
            gradients = [parameter.grad for parameter in model.parameters()]
            waiting.extend(grad.full_tensor() if isinstance(grad, DTensor) else grad.clone() for grad in gradients)
        drawn.append(waiting.pop())
        return drawn[-1]

    assert_unbiased(draw, exact, draws=draws)
    return torch.stack(drawn), exact, float(rmm_variance(x, grad_output, CONFIG))


def _z(samples: Tensor, exact: Tensor, variance: float) -> float:
    """How many standard errors the measured noise is off."""
    squares = (samples - exact).square().sum((1, 2))
    return float((squares.mean() - variance) / (squares.std() / len(squares) ** 0.5))


def _check(wrap: Callable[[nn.Module], nn.Module], draws: int) -> None:
    ranks = dist.get_world_size()
    samples, exact, variance = _samples(wrap, draws)
    assert abs(_z(samples, exact, variance / ranks)) < 5
    for wrong in (0.95, 1.05):
        assert abs(_z(samples, exact, wrong * variance / ranks)) > 5, "too few draws to see 5 %"
    # As if nothing of the rank went into the seeds.
    alone = mock.patch("rmm_gnn.seeding.dist.get_rank", return_value=0) if ranks > 1 else contextlib.nullcontext()
    with alone:
        shared, _, _ = _samples(wrap, draws // 2)
    assert abs(_z(shared, exact, variance)) < 5
    assert ranks == 1 or _z(shared, exact, variance / ranks) > 10, "ranks that share S would not have been noticed"


def noise_falls_by_the_number_of_ranks() -> None:
    _check(DistributedDataParallel, 10 * _LAYERS)


def noise_falls_by_the_number_of_ranks_that_hold_shards() -> None:
    _check(fully_shard, 10 * _LAYERS)


CHECKS = [noise_falls_by_the_number_of_ranks, noise_falls_by_the_number_of_ranks_that_hold_shards]
