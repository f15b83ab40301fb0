"""Training under autocast with a GradScaler: scaled gradients are the gradients, and an overflow skips the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch_geometric.nn import GCN2Conv

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm
from rmm_gnn.nn import (
    LeanBatchNorm1d,
    LeanDropout,
    LeanELU,
    LeanGELU,
    LeanLayerNorm,
    LeanLeakyReLU,
    LeanReLU,
    LeanReLUDropout,
    LeanRMSNorm,
    LeanSiLU,
    RMMLinear,
    RMMTorchLinear,
)
from rmm_gnn.sketches import FAMILIES
from tests.nn.recording import one_thread

ROWS, WIDTH = 96, 13
CONFIG = RMMConfig(rate=0.5, codec="int8")
DTYPE = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
MODE = {"mode": lambda: compress_activations(CONFIG)}


class Convolution(nn.Module):
    """A GCN2 convolution on a ring, converted."""

    def __init__(self, config: RMMConfig) -> None:
        super().__init__()
        self.conv = GCN2Conv(WIDTH, 0.3, theta=0.5, layer=1, shared_weights=False, normalize=False)
        nodes = torch.arange(ROWS)
        self.register_buffer("edges", torch.stack([nodes, (nodes + 1) % ROWS]))
        convert_to_rmm(self, config)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, x, self.edges)


def linear(config: RMMConfig = CONFIG) -> nn.Module:
    return RMMTorchLinear(WIDTH, WIDTH, bias=False, config=config)  # a bias would show an overflow by itself


def after(module: nn.Module) -> nn.Sequential:
    """A lean module whose gradient reaches the weight of a layer before it."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), module)


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.2), linear()
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "RMMTorchLinear": linear,
    "RMMLinear": lambda: RMMLinear(WIDTH, WIDTH, bias=False, config=CONFIG),
    "RMMGCN2Conv": lambda: Convolution(CONFIG),
    "RMMGCN2Conv, anchored": lambda: Convolution(replace(CONFIG, anchor=True, x0_codec="int4")),
    "relu": lambda: after(LeanReLU()),
    "leaky_relu": lambda: after(LeanLeakyReLU()),
    "dropout": lambda: after(LeanDropout(0.3)),
    "relu_dropout": lambda: after(LeanReLUDropout(0.3)),
    "gelu": lambda: after(LeanGELU()),
    "silu": lambda: after(LeanSiLU()),
    "elu": lambda: after(LeanELU()),
    "batch_norm": lambda: after(LeanBatchNorm1d(WIDTH, affine=False)),
    "batch_norm, sketched": lambda: after(LeanBatchNorm1d(WIDTH, affine=False, config=RMMConfig(norm_rate=0.5))),
    "layer_norm": lambda: after(LeanLayerNorm(WIDTH, elementwise_affine=False)),
    "rms_norm": lambda: after(LeanRMSNorm(WIDTH, elementwise_affine=False)),
    "mode": plain,
}
NAME = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def small_products() -> Iterator[None]:
    with one_thread():
        yield


def context_of(name: str) -> AbstractContextManager[object]:
    return MODE.get(name, nullcontext)()


def loss_of(name: str, model: nn.Module, x: Tensor, dtype: torch.dtype, factors: Tensor | None = None) -> Tensor:
    """The loss of a forward pass under autocast; ``factors`` are those of the output's rows."""
    with torch.autocast("cpu", dtype=dtype), context_of(name):
        out = model(x)
    assert out.dtype == dtype
    return ((out.float() - x.roll(1, 0)).square() * (1.0 if factors is None else factors)).mean()


def draw_x() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


@NAME
@DTYPE
def test_scaled_gradients_are_the_gradients_times_the_scale(name, dtype):
    model, x = MODELS[name](), draw_x()
    found = []
    for scale in (1.0, 2.0**8):
        torch.manual_seed(3)
        model.zero_grad()
        (scale * loss_of(name, model, x, dtype)).backward()
        found.append([parameter.grad / scale for parameter in model.parameters()])
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    # A power of two changes nothing but numbers below the smallest normal one.
    for scaled, grad in zip(found[1], found[0], strict=True):
        assert grad.abs().sum() > 0
        torch.testing.assert_close(scaled, grad, rtol=2e-2, atol=1e-2 * float(grad.abs().max()))


def train(name: str, model: nn.Module, dtype: torch.dtype, scaler: GradScaler, factors: Tensor | None = None) -> bool:
    """One step; whether the optimizer made it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.zero_grad()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler.scale(loss_of(name, model, draw_x(), dtype, factors)).backward()
    scaler.step(optimizer)
    scaler.update()
    after = list(model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    return not all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@NAME
@DTYPE
def test_an_overflow_of_one_row_skips_the_step_and_the_next_one_is_made(name, dtype):
    model, scaler = MODELS[name](), GradScaler("cpu", init_scale=256.0)
    factors = torch.ones(ROWS, 1)
    factors[5] = torch.inf
    assert not train(name, model, dtype, scaler, factors)
    assert scaler.get_scale() == 128.0
    assert train(name, model, dtype, scaler)
    assert scaler.get_scale() == 128.0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["x", "gradient"])
def test_no_family_hides_an_overflow(family, where):
    """Also those that read a part of the rows: row 5 is in few of their sketches."""
    for seed in range(5):
        layer = linear(RMMConfig(rate=0.1, sketch=family, codec="int4"))
        x, factors = draw_x(), torch.ones(ROWS, 1)
        if where == "x":
            x[5] = torch.inf
        else:
            factors[5] = torch.inf
        torch.manual_seed(seed)
        loss_of("", layer, x, torch.float16, factors).backward()
        assert not layer.weight.grad.isfinite().all()


@NAME
def test_a_scale_that_is_too_high_comes_down_until_steps_are_made(name):
    model, scaler = MODELS[name](), GradScaler("cpu", init_scale=2.0**40)
    made = [train(name, model, torch.float16, scaler) for _ in range(50)]
    assert not made[0] and made[-1]


@pytest.mark.parametrize("name", ["RMMTorchLinear", "RMMGCN2Conv", "batch_norm", "mode"])
@DTYPE
def test_training_takes_the_loss_down(name, dtype):
    model, scaler = MODELS[name](), GradScaler("cpu", init_scale=256.0)
    losses = []
    for _ in range(40):
        assert train(name, model, dtype, scaler)
        with torch.no_grad():
            losses.append(float((model(draw_x()) - draw_x().roll(1, 0)).square().mean()))
    assert losses[-1] < losses[0]
