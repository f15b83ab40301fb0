"""Storage in a floating-point type."""

import pytest
import torch

from rmm_gnn.codecs import CODECS, get_codec


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_rows_come_back_rounded_to_the_stored_type(name, dtype):
    codec = get_codec(name)
    matrix = torch.randn(9, 5).to(dtype)
    payload = codec.empty(9, 5, dtype, matrix.device)
    codec.encode(matrix[:4], payload, 0, torch.tensor(0))
    codec.encode(matrix[4:], payload, 4, torch.tensor(0))
    stored = {"fp32": dtype, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    assert len(payload) == codec.num_tensors and payload[0].dtype == stored
    torch.testing.assert_close(codec.decode(payload, 2, 7, torch.float64), matrix[2:7].to(stored).double())
    assert codec.num_bytes(9, 5, dtype) == 9 * 5 * stored.itemsize


@pytest.mark.parametrize("name", CODECS)
def test_no_rows_no_bytes(name):
    assert get_codec(name).num_bytes(0, 5, torch.float32) == 0


def test_inf_and_nan_are_stored():
    for name in CODECS:
        payload = get_codec(name).empty(1, 2, torch.float32, torch.device("cpu"))
        get_codec(name).encode(torch.tensor([[float("inf"), float("nan")]]), payload, 0, torch.tensor(0))
        back = get_codec(name).decode(payload, 0, 1, torch.float32)
        assert back[0, 0].isinf() and back[0, 1].isnan()
