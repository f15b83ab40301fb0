"""Storage in a floating-point type."""

import pytest
import torch

from tests.codecs.cases import CASTS

CODEC = pytest.mark.parametrize("codec", CASTS.values(), ids=CASTS.keys())


@CODEC
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_rows_come_back_rounded_to_the_stored_type(codec, dtype):
    matrix = torch.randn(9, 5).to(dtype)
    payload = codec.empty(9, 5, dtype, matrix.device)
    codec.encode(matrix[:4], payload, 0, torch.tensor(0))
    codec.encode(matrix[4:], payload, 4, torch.tensor(0))
    stored = {"fp32": dtype, "bf16": torch.bfloat16, "fp16": torch.float16}[codec.name]
    assert len(payload) == codec.num_tensors and payload[0].dtype == stored
    torch.testing.assert_close(codec.decode(payload, 2, 7, 5, torch.float64), matrix[2:7].to(stored).double())
    assert codec.num_bytes(9, 5, dtype) == 9 * 5 * stored.itemsize


@CODEC
def test_no_rows_no_bytes(codec):
    assert codec.num_bytes(0, 5, torch.float32) == 0


@CODEC
def test_inf_and_nan_are_stored(codec):
    payload = codec.encode_matrix(torch.tensor([[float("inf"), float("nan")]]), torch.tensor(0))
    back = codec.decode(payload, 0, 1, 2, torch.float32)
    assert back[0, 0].isposinf() and back[0, 1].isnan()


@CODEC
def test_nothing_is_random(codec):
    matrix = torch.randn(9, 5)
    (first,), (second,) = (codec.encode_matrix(matrix, torch.tensor(seed)) for seed in (1, 2))
    assert torch.equal(first, second)
    assert not codec.variance(matrix).any()
