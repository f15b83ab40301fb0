"""Bucket sums against a loop."""

import pytest
import torch

from rmm_gnn.kernels import bucket_sum, check_backend, resolve


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("contiguous", [True, False])
def test_bucket_sum_against_a_loop(dtype, contiguous):
    matrix = torch.randn(30, 4).to(dtype)
    matrix = matrix if contiguous else torch.randn(30, 8).to(dtype)[:, ::2]
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    rows = torch.randperm(30)[:23].to(torch.int32)
    signs = torch.randint(0, 2, (23,)).to(accumulate) * 2 - 1
    offsets = [0, 5, 5, 17]
    result = bucket_sum(matrix, rows, signs, torch.tensor(offsets, dtype=torch.int32), "auto")
    assert result.dtype == accumulate
    for bucket, (begin, end) in enumerate(zip(offsets, [*offsets[1:], 23], strict=True)):
        expected = sum((signs[p] * matrix[rows[p]].to(accumulate) for p in range(begin, end)), torch.zeros(4))
        torch.testing.assert_close(result[bucket], expected.to(accumulate))


def test_auto_stands_for_torch_where_nothing_is_faster():
    assert resolve("torch", torch.ones(1)) == resolve("auto", torch.ones(1, dtype=torch.float16)) == "torch"
    assert check_backend("auto") == "auto"
