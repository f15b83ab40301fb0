"""torch-scatter's bucket sums against the reference, where torch-scatter is installed."""

import importlib.util

import pytest
import torch

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.kernels import bucket_sum

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_scatter") is None, reason="torch-scatter is not installed"
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scatter_equals_reference(dtype):
    matrix = torch.randn(1000, 7).to(dtype)
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    rows = torch.randperm(1000).to(torch.int32)
    signs = torch.randint(0, 2, (1000,)).to(accumulate) * 2 - 1
    offsets = torch.tensor([0, 10, 10, 500, 999], dtype=torch.int32)
    expected = bucket_sum(matrix, rows, signs, offsets, "torch")
    torch.testing.assert_close(bucket_sum(matrix, rows, signs, offsets, "scatter"), expected)


def test_layer_gradient_is_the_same_on_both_backends():
    x, weight = torch.randn(500, 8), torch.randn(3, 8, requires_grad=True)
    gradients = []
    for backend in ("torch", "scatter"):
        weight.grad = None
        rmm_linear(x, weight, config=RMMConfig(backend=backend), seed=3).square().sum().backward()
        gradients.append(weight.grad)
    torch.testing.assert_close(*gradients)
