"""The choice between implementations, and layers that run by each."""

import importlib.util
import inspect
from importlib import import_module
from inspect import signature

import pytest
import torch
import torch.nn.functional as F

from rmm_gnn import RMMConfig, compress_activations, kernels, rmm_linear
from rmm_gnn.functional import anchored_linear, leaky_relu, relu, relu_dropout
from rmm_gnn.kernels import activations_triton, batch_norm_triton, launching_triton
from rmm_gnn.nn import LeanBatchNorm1d, LeanDropout, LeanLeakyReLU, LeanReLU, LeanReLUDropout
from tests.kernels.device import DEVICE

FAMILIES = ["count_sketch", "gaussian", "rademacher", "block_rademacher"]


def weight_grad(backend: str, **settings) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x, grad_output = (torch.randn(300, n, generator=generator).to(DEVICE) for n in (24, 5))
    weight = torch.zeros(5, 24, device=DEVICE, requires_grad=True)
    rmm_linear(x, weight, config=RMMConfig(backend=backend, **settings), seed=3).backward(grad_output)
    return weight.grad


@pytest.mark.parametrize("center", [True, False], ids=["centred", "plain"])
@pytest.mark.parametrize("codec", ["fp32", "int8", "int2:group_size=10"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_the_same(family, codec, center):
    settings = {"rate": 0.2, "sketch": family, "codec": codec, "center": center}
    # A rounded code may fall the other way where sums differ in their last bit: one step of one entry.
    tolerance = 1e-4 if codec == "fp32" else 0.05
    torch.testing.assert_close(
        weight_grad("triton", **settings), weight_grad("torch", **settings), rtol=tolerance, atol=10 * tolerance
    )


def test_blocks_of_a_small_workspace_make_the_same_sketch():
    settings = {"rate": 0.5, "codec": "int8"}
    whole = weight_grad("triton", **settings)
    torch.testing.assert_close(weight_grad("triton", workspace_bytes=4096, **settings), whole, rtol=1e-3, atol=1e-2)


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(launching_triton, "is_interpreted", lambda kernel: False)
    x, weight = torch.randn(20, 3), torch.randn(2, 3, requires_grad=True)
    for settings in ({}, {"sketch": "gaussian"}):
        with pytest.raises(ValueError, match=r"'backend' must be one that runs on cpu \(got 'triton'\). Use"):
            rmm_linear(x, weight, config=RMMConfig(backend="triton", **settings))


def test_a_family_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match="'backend' must be one that computes 'sors'"):
        RMMConfig(sketch="sors", backend="triton")


def test_triton_has_to_be_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="backend 'triton' needs triton"):
        RMMConfig(backend="triton")


def lean_block(backend: str, **settings) -> list[torch.Tensor]:
    """Output and gradients of the modules that the kernels serve, and of the same as functions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 24, generator=generator).to(DEVICE).requires_grad_()
    config = RMMConfig(backend=backend, **settings)
    torch.manual_seed(3)
    modules = [
        LeanBatchNorm1d(24, config=config),
        LeanReLU(config=config),
        LeanDropout(0.3, config=config),
        LeanLeakyReLU(0.2, config=config),
        LeanReLUDropout(0.4, config=config),
    ]
    block = torch.nn.Sequential(*modules).to(DEVICE)
    out = block(x)
    with compress_activations(config=config):
        out = F.dropout(F.leaky_relu(F.relu(F.batch_norm(out, None, None, training=True)) - 0.1, 0.3), 0.2)
        out = F.rms_norm(F.silu(F.gelu(F.layer_norm(out, (24,)))), (24,))
    out.square().sum().backward()
    return [out.detach(), x.grad, *(parameter.grad for parameter in block.parameters())]


@pytest.mark.parametrize("center", [True, False], ids=["centred", "plain"])
@pytest.mark.parametrize("codec", ["fp32", "int8", "int8:group_size=10"])
def test_anchored_gradients_are_the_same(codec, center):
    """What is coded is the residual of the fit: without it the exact term would be there twice."""
    generator = torch.Generator().manual_seed(0)
    x_0, grad_output = (torch.randn(300, n, generator=generator).to(DEVICE) for n in (24, 5))
    x = 3 * x_0 + 0.1 * torch.randn(300, 24, generator=generator).to(DEVICE)
    found = []
    for backend in ("triton", "torch"):
        weight = torch.zeros(5, 24, device=DEVICE, requires_grad=True)
        config = RMMConfig(rate=0.2, backend=backend, codec=codec, center=center, anchor=True)
        anchored_linear(x, weight, x_0, config=config, seed=3).backward(grad_output)
        found.append(weight.grad)
    torch.testing.assert_close(*found, rtol=1e-2, atol=0.3)
    exact = grad_output.T @ x
    for estimate in found:
        assert (estimate - exact).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize("norm_rate", [1.0, 0.5])
@pytest.mark.parametrize("norm_codec", ["fp32", "int8"])
def test_lean_operators_are_the_same(norm_codec, norm_rate):
    blocks = [lean_block(backend, norm_codec=norm_codec, norm_rate=norm_rate) for backend in ("triton", "torch")]
    # A rounded code may fall the other way where sums differ in their last bit.
    tolerance = 1e-4 if norm_codec == "fp32" else 0.02
    for own, other in zip(*blocks, strict=True):
        torch.testing.assert_close(own, other, rtol=tolerance, atol=tolerance)


def test_lean_operators_call_the_kernels(monkeypatch):
    called = []
    for module, names in (
        (activations_triton, ("relu", "relu_dropout", "dropout", "masked_grad")),
        (batch_norm_triton, ("encode_normalized", "reduce", "grad_input")),
    ):
        for name in names:
            own = getattr(module, name)
            monkeypatch.setattr(module, name, lambda *a, own=own, **k: (called.append(own.__name__), own(*a, **k))[1])
    lean_block("torch")
    assert not called
    lean_block("triton")
    assert set(called) == {
        "relu", "relu_dropout", "dropout", "masked_grad", "encode_normalized", "reduce", "grad_input"
    }  # fmt: skip


@pytest.mark.parametrize("norm_rate", [1.0, 0.5])
def test_no_lean_operator_chooses_by_itself(norm_rate, monkeypatch):
    """Where a backend is asked for, none takes what "auto" would take."""
    asked, own = set(), kernels.resolve
    monkeypatch.setattr(kernels, "resolve", lambda backend, *rest: (asked.add(backend), own(backend, *rest))[1])
    monkeypatch.setattr("rmm_gnn.sketches.count_sketch.resolve", kernels.resolve)
    lean_block("torch", norm_rate=norm_rate)
    assert asked == {"torch"}


def test_lean_operators_refuse_what_cannot_run(monkeypatch):
    monkeypatch.setattr(launching_triton, "is_interpreted", lambda kernel: False)
    x = torch.randn(20, 3, requires_grad=True)
    turned = torch.randn(3, 20).t().requires_grad_()
    for function in (relu, leaky_relu, relu_dropout):
        with pytest.raises(ValueError, match="'backend' must be one that runs on cpu"):
            function(turned, backend="triton")
        with pytest.raises(ValueError, match=r"'backend' must be one that runs on cpu \(got 'triton'\). Use"):
            function(x, backend="triton")
        with pytest.raises(ValueError, match="'backend' must be a known name"):
            function(x, backend="cuda")
    with pytest.raises(ValueError, match=r"'backend' must be one that takes torch\.float16 on cpu"):
        relu(x.half(), backend="native")


@pytest.mark.parametrize("operation", ["activations", "batch_norm", "codes"])
def test_one_call_serves_both_languages(operation):
    """What is called without a look at the implementation takes the same arguments in each."""
    in_c, in_triton = (import_module(f"rmm_gnn.kernels.{operation}_{name}") for name in ("native", "triton"))
    named = {name: value for name, value in vars(in_c).items() if inspect.isfunction(value) and name[0] != "_"}
    helpers = {"coded", "done"}  # of the modules in C among themselves
    shared = [name for name, value in named.items() if value.__module__ == in_c.__name__ and name not in helpers]
    assert len(shared) >= 2
    for name in shared:
        assert list(signature(getattr(in_triton, name)).parameters) == list(signature(named[name]).parameters), name


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_auto_takes_the_kernels_on_a_gpu(dtype):
    x = torch.ones(2, 2, dtype=dtype, device="cuda")
    assert kernels.resolve("auto", x) == kernels.resolve("auto", x.byte(), dtype) == "triton"
    assert kernels.resolve("auto", x.requires_grad_()) == "torch"  # the kernels know nothing of autograd
