"""The kernels of the codecs of few bits against plain torch: the same bytes, and the same values from them."""

import pytest
import torch

from rmm_gnn.codecs import get_codec
from rmm_gnn.kernels.codes_triton import decode, encode
from tests.kernels.device import DEVICE, far_apart

SEED = torch.tensor(2**40 + 11, device=DEVICE)


def payloads(matrix, codec, start=0):
    """What plain torch stores and what the kernel stores, both with ``start`` rows before."""
    by_torch, by_kernel = (
        codec.empty(start + matrix.shape[0], matrix.shape[1], matrix.dtype, matrix.device) for _ in range(2)
    )
    codec.encode(matrix, by_torch, start, SEED, backend="torch")
    codes, scales = (tensor[start:] for tensor in by_kernel)
    encode(matrix, codes, scales, SEED, start, bits=codec.bits, group_size=codec.group_size)
    return [tensor[start:] for tensor in by_torch], [codes, scales]


def assert_same_values(payload, codec, columns, dtype):
    expected = codec.decode(payload, 0, payload[0].shape[0], columns, dtype, backend="torch")
    values = decode(*payload, columns, dtype, bits=codec.bits, group_size=codec.group_size)
    # Where Triton is interpreted, float32 becomes a shorter type by another rule than to nearest even.
    tolerance = 0.0 if dtype.itemsize >= 4 else torch.finfo(dtype).eps
    torch.testing.assert_close(values, expected, rtol=tolerance, atol=0.0, equal_nan=True)


def assert_same(matrix, name):
    codec = get_codec(name)
    by_torch, by_kernel = payloads(matrix, codec)
    assert torch.equal(by_kernel[1], by_torch[1])
    assert torch.equal(by_kernel[0], by_torch[0])
    for out in {torch.float32, matrix.dtype}:
        assert_same_values(by_torch, codec, matrix.shape[1], out)


def rows_of_many_scales(num_rows, columns):
    return torch.randn(num_rows, columns, device=DEVICE) * torch.logspace(-3, 3, num_rows, device=DEVICE)[:, None] + 1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("num_rows", "columns", "settings"),
    [
        (1, 1, ""),
        (63, 40, ""),
        (100, 100, ":group_size=32"),
        (4097, 40, ":scale=fp32"),
        (5, 768, ":group_size=100,scale=fp32"),
        (64, 256, ":group_size=4096"),
    ],
    ids=str,
)
def test_same_bytes_and_values(num_rows, columns, settings, bits):
    assert_same(rows_of_many_scales(num_rows, columns), f"int{bits}{settings}")


@pytest.mark.parametrize("scale", ["bf16", "fp32"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types(dtype, scale):
    assert_same(rows_of_many_scales(40, 63).to(dtype), f"int2:scale={scale}")


def test_rows_after_others_have_their_own_rounding():
    codec, matrix = get_codec("int2"), torch.randn(20, 30, device=DEVICE)
    first, second = payloads(matrix, codec)[1], payloads(matrix, codec, start=7)[1]
    assert torch.equal(*(payload[0] for payload in payloads(matrix, codec, start=7)))
    assert not torch.equal(first[0], second[0])


def test_any_strides():
    for matrix in (torch.randn(30, 20, device=DEVICE).t(), torch.randn(1, 30, device=DEVICE).expand(20, 30)):
        by_torch, by_kernel = payloads(matrix, get_codec("int4"))
        assert all(map(torch.equal, by_kernel, by_torch))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_that_have_no_range_or_too_large_a_one(dtype):
    matrix = torch.randn(8, 40, dtype=dtype, device=DEVICE)
    matrix[1], matrix[2], matrix[3] = 0.0, 2.7, -1e-30
    matrix[4, 3], matrix[5, 7], matrix[6, :2] = torch.nan, -torch.inf, torch.tensor([3e38, -3e38], dtype=dtype)
    matrix[7] *= 1e-30
    for name in ("int2", "int8:scale=fp32"):
        codec = get_codec(name)
        by_torch, by_kernel = payloads(matrix, codec)
        torch.testing.assert_close(by_kernel[1], by_torch[1], rtol=0.0, atol=0.0, equal_nan=True)
        finite = by_torch[1].isfinite().all(1)
        assert torch.equal(by_kernel[0][finite], by_torch[0][finite])
        assert_same_values(by_torch, codec, 40, dtype)
        assert_same_values(by_kernel, codec, 40, dtype)


def test_more_than_2_to_the_31_elements():
    by_torch, by_kernel = payloads(far_apart(5, 40, torch.float16), get_codec("int4"))
    assert all(map(torch.equal, by_kernel, by_torch))
