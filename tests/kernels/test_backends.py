"""The choice between implementations, and layers that run by each."""

import importlib.util

import pytest
import torch

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.kernels import launching_triton
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
