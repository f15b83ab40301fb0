"""Numbers of channels that fill no byte, vector or block: layers, codecs and lean modules at 1, 3, 13 and 39."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCN2Conv, Linear

from rmm_gnn import RMMConfig, convert_to_rmm
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
)
from tests.nn.recording import assert_unbiased, kept_storages, one_thread, saved_tensors

ROWS = 403
CHANNELS = pytest.mark.parametrize("channels", [1, 3, 13, 39])
CODECS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4, "int2": 2, "int1": 1}
CODEC = pytest.mark.parametrize("codec", CODECS)


class Convolution(nn.Module):
    """A GCN2 convolution on a ring."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = GCN2Conv(channels, 0.3, theta=0.5, layer=1, shared_weights=False, normalize=False)
        nodes = torch.arange(ROWS)
        self.register_buffer("edges", torch.stack([nodes, (nodes + 1) % ROWS]))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, x, self.edges)


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "torch linear": lambda channels: nn.Sequential(nn.Linear(channels, channels + 2)),
    "PyG linear": lambda channels: nn.Sequential(Linear(channels, channels + 2)),
    "GCN2Conv": Convolution,
}
LAYER = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(autouse=True)
def small_products() -> Iterator[None]:
    with one_thread():
        yield


def pair(name: str, channels: int, config: RMMConfig) -> tuple[nn.Module, nn.Module]:
    """A stock layer and the converted one, with the same weights."""
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(LAYERS[name](channels))
    return models[0], convert_to_rmm(models[1], config)


def draw(rows: int, channels: int, seed: int = 1) -> Tensor:
    return torch.randn(rows, channels, generator=torch.Generator().manual_seed(seed))


def weight_grads(model: nn.Module, x: Tensor) -> list[Tensor]:
    out = model(x)
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    grad_output = x @ draw(x.shape[1], out.shape[1], seed=2)  # far from orthogonal to x: a large gradient
    return list(torch.autograd.grad(out, weights, grad_output))


@LAYER
@CHANNELS
def test_layers_that_keep_all_are_exact(name, channels):
    stock, layer = pair(name, channels, RMMConfig(rate=1.0))
    x = draw(ROWS, channels)
    torch.testing.assert_close(layer(x), stock(x))
    for found, exact in zip(weight_grads(layer, x), weight_grads(stock, x), strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["torch linear", "GCN2Conv"])
@pytest.mark.parametrize("codec", ["int4", "int2", "int1"])
@CHANNELS
def test_rounding_leaves_layers_unbiased(name, channels, codec):
    stock, layer = pair(name, channels, RMMConfig(rate=1.0, codec=codec, x0_codec=codec))
    x = draw(ROWS, channels)
    exact = torch.cat([grad.flatten() for grad in weight_grads(stock, x)])
    assert_unbiased(lambda: torch.cat([grad.flatten() for grad in weight_grads(layer, x)]), exact, draws=100)


@CHANNELS
@CODEC
def test_layers_keep_the_bytes_that_are_documented(channels, codec):
    config = RMMConfig(rate=0.5, codec=codec)
    _, layer = pair("torch linear", channels, config)
    with saved_tensors() as saved:
        layer(draw(ROWS, channels))
    size = config.sketch_size(ROWS)
    coded = CODECS[codec] < 16
    payload = size * (math.ceil(channels * CODECS[codec] / 8) + 4 * coded)
    assert sum(kept_storages(saved, besides=layer.parameters()).values()) == payload + 4 * channels + 8
    assert config.saved_bytes(ROWS, channels) == payload + 4 * channels + 8


EXACT = RMMConfig(norm_codec="fp32", act_codec="fp32")
# Lean and torch's, as functions of the number of channels and the config.
PAIRS: dict[str, tuple[Callable[[int, RMMConfig], nn.Module], Callable[[int], nn.Module]]] = {
    "relu": (lambda n, config: LeanReLU(config=config), lambda n: nn.ReLU()),
    "leaky_relu": (lambda n, config: LeanLeakyReLU(config=config), lambda n: nn.LeakyReLU()),
    "gelu": (lambda n, config: LeanGELU(config=config), lambda n: nn.GELU()),
    "silu": (lambda n, config: LeanSiLU(config=config), lambda n: nn.SiLU()),
    "elu": (lambda n, config: LeanELU(config=config), lambda n: nn.ELU()),
    "batch_norm": (lambda n, config: LeanBatchNorm1d(n, config=config), nn.BatchNorm1d),
    "layer_norm": (lambda n, config: LeanLayerNorm(n, config=config), nn.LayerNorm),
    "rms_norm": (lambda n, config: LeanRMSNorm(n, config=config), nn.RMSNorm),
}


def input_grad(module: nn.Module, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(module(x), x, draw(*x.shape, seed=2))[0]


@pytest.mark.parametrize("name", PAIRS)
@CHANNELS
def test_lean_modules_that_round_nothing_are_torchs(name, channels):
    lean, stock = PAIRS[name]
    x = draw(ROWS, channels)
    torch.testing.assert_close(lean(channels, EXACT)(x), stock(channels)(x))
    torch.testing.assert_close(
        input_grad(lean(channels, EXACT), x), input_grad(stock(channels), x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("codec", ["int8", "int4", "int2", "int1"])
@pytest.mark.parametrize("name", ["gelu", "silu", "elu"])
@CHANNELS
def test_coded_derivatives_are_unbiased(name, channels, codec):
    lean, stock = PAIRS[name]
    module, x = lean(channels, replace(EXACT, act_codec=codec)), draw(ROWS, channels)
    exact = input_grad(stock(channels), x)
    mean = torch.stack([input_grad(module, x) for _ in range(100)]).mean(0)
    assert (mean - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("module", [LeanDropout(0.4), LeanReLUDropout(0.4)], ids=["dropout", "relu_dropout"])
@CHANNELS
def test_dropout_passes_the_gradient_where_it_passed_the_value(module, channels):
    x = draw(ROWS, channels).abs().add(0.1).requires_grad_()
    out = module(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad * x, out)
    assert {round(value, 4) for value in grad.unique().tolist()} <= {0.0, round(1 / 0.6, 4)}
