"""Coding in C against plain torch, bit for bit; the kernels are compiled when the package is installed."""

import pytest
import torch

from rmm_gnn.codecs import StochasticCodec
from rmm_gnn.functional import batch_norm
from rmm_gnn.kernels import activations_native, batch_norm_native, native
from tests.kernels.compiler import NEEDS_COMPILER
from tests.kernels.device import far_apart

pytestmark = NEEDS_COMPILER
SEED = torch.tensor(2**40 + 11)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
BITS = pytest.mark.parametrize("bits", [8, 4, 2, 1])


def same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)


def assert_codes_are_torchs(codec, matrix, start=0, out=None):
    """Of all rows, as rows [start, ...) of a larger matrix, and what is read back of them."""
    payloads = []
    for backend in ("native", "torch"):
        payload = [tensor.fill_(7) for tensor in codec.empty(start + len(matrix), matrix.shape[1], matrix.dtype, "cpu")]
        codec.encode(matrix, payload, start, SEED, backend=backend)
        payloads.append(payload)
    same(payloads[0][0], payloads[1][0])
    same(payloads[0][1], payloads[1][1])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        first, stop = start + len(matrix) // 3, start + len(matrix)
        rows = [codec.decode(payloads[0], first, stop, matrix.shape[1], dtype, backend=b) for b in ("native", "torch")]
        same(*rows)


@DTYPES
@BITS
@pytest.mark.parametrize("num_rows", [1, 63, 100, 4097])
def test_equals_plain_torch(num_rows, bits, dtype):
    for columns in (1, 40, 100, 256, 768) if num_rows <= 100 else (40, 256):
        assert_codes_are_torchs(StochasticCodec(bits), torch.randn(num_rows, columns).to(dtype), start=num_rows % 5)


@DTYPES
@BITS
@pytest.mark.parametrize("group_size", [1, 7, 16, 64, 1000])
@pytest.mark.parametrize("scale", ["bf16", "fp32"])
def test_groups(scale, group_size, bits, dtype):
    codec = StochasticCodec(bits, group_size=group_size, scale=scale)
    assert_codes_are_torchs(codec, (torch.randn(30, 100) * 10 ** torch.linspace(-20, 15, 30).unsqueeze(1)).to(dtype))


@pytest.mark.parametrize(
    "view",
    [lambda m: m.t(), lambda m: m[:, ::2], lambda m: m[::3], lambda m: m[:1].expand(50, -1), lambda m: m[:, :1]],
    ids=["transposed", "every other column", "every third row", "stride 0", "one column"],
)
@DTYPES
def test_any_strides(view, dtype):
    assert_codes_are_torchs(StochasticCodec(2), view(torch.randn(100, 64).to(dtype)))


@DTYPES
def test_rows_that_have_no_range_or_too_large_a_one(dtype):
    matrix = torch.randn(9, 50, dtype=torch.float64).to(dtype)
    matrix[1], matrix[2], matrix[3] = 0.3, 0.0, 1e-41
    matrix[4, 3], matrix[5, 7], matrix[6, :2] = torch.nan, -torch.inf, torch.tensor([3e38, -3e38], dtype=dtype)
    matrix[7] = -(2.0**-140) * torch.arange(50)
    matrix[8, 49] = torch.inf
    for bits in (8, 4, 2, 1):
        for scale in ("bf16", "fp32"):
            assert_codes_are_torchs(StochasticCodec(bits, scale=scale), matrix)


def test_addresses_beyond_2_to_the_31():
    matrix = far_apart(4, 40, torch.float32, torch.device("cpu"))
    assert_codes_are_torchs(StochasticCodec(4), matrix)


def test_the_number_of_threads_changes_nothing():
    matrix, codec, found = torch.randn(5000, 200), StochasticCodec(2), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            payload = codec.encode_matrix(matrix, SEED)
            found.append([*payload, codec.decode(payload, 0, 5000, 200, torch.float32)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_empty_matrices():
    for shape in ((0, 5), (5, 0)):
        payload = StochasticCodec(4).encode_matrix(torch.ones(shape), SEED)
        assert StochasticCodec(4).decode(payload, 0, shape[0], shape[1], torch.float32).shape == shape


def test_what_they_do_not_take_raises():
    codec = StochasticCodec(4)
    payload = codec.empty(3, 4, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"'backend' must be one that takes torch.float16 on cpu \(got 'native'"):
        codec.encode(torch.ones(3, 4, dtype=torch.float16), payload, 0, SEED, backend="native")
    with pytest.raises(ValueError, match=r"'backend' must be one that reads codes as torch.float16 \(got 'native'"):
        codec.decode(payload, 0, 3, 4, torch.float16, backend="native")
    with pytest.raises(ValueError, match="'backend' must be one that takes"):
        batch_norm_native.reduce(torch.ones(3, 4, dtype=torch.int32), *payload, bits=4, group_size=None)


@DTYPES
@BITS
@pytest.mark.parametrize("shape", [(1, 5), (63, 1), (100, 40), (4097, 8), (300, 3, 7)], ids=str)
def test_what_normalisation_does_in_one_pass(shape, bits, dtype, monkeypatch):
    """Kept are the very bytes that two passes keep; sums over rows are formed in another order."""
    codec, matrix = StochasticCodec(bits), torch.randn(shape).to(dtype).flatten(1)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    mean, factor, other = torch.randn(3, matrix.shape[1], dtype=compute)
    gradient = torch.randn(matrix.shape).to(dtype)
    payload = codec.empty(*matrix.shape, dtype, torch.device("cpu"))
    coding = codec.norm_coding(matrix)
    coding.encode(matrix, mean, factor, payload, SEED)

    expected = codec.empty(*matrix.shape, dtype, torch.device("cpu"))
    codec.encode(matrix.to(compute).sub(mean).mul(factor), expected, 0, SEED, backend="torch")
    same(payload, expected)

    read = codec.decode(expected, 0, len(matrix), matrix.shape[1], torch.float64, backend="torch")
    sums, products = coding.reduce(gradient, payload)
    near = {"rtol": 1e-5, "atol": 1e-5 * len(matrix) ** 0.5}
    torch.testing.assert_close(sums.double(), gradient.double().sum(0), **near)
    torch.testing.assert_close(products.double(), (gradient.double() * read).sum(0), **near)
    found = coding.grad_input(gradient, payload, factor, mean, other)
    reference = (gradient.double() - mean - read * other) * factor
    torch.testing.assert_close(
        found.double(), reference.to(dtype).double(), rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-4
    )


@DTYPES
@pytest.mark.parametrize("shape", [(100, 6), (40, 6, 5), (12, 6, 3, 4)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_is_that_of_plain_torch(affine, shape, dtype, monkeypatch):
    x, weights = torch.randn(shape).to(dtype), torch.rand(2, 6) if affine else (None, None)
    gradient = torch.randn(shape).to(dtype)
    results = []
    for built in (True, False):
        monkeypatch.setattr(native, "is_built", lambda built=built: built)
        leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in (x, *weights)]
        out = batch_norm(*leaves[:1], None, None, *leaves[1:], training=True, codec="int4", seed=SEED)
        out.backward(gradient)
        results.append([out, *(leaf.grad for leaf in leaves if leaf is not None)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_sums_over_many_rows_keep_their_digits():
    """A float32 counter would stop at 2^24."""
    rows = 2**24 + 4096
    payload = StochasticCodec(1).empty(1, 1, torch.float32, torch.device("cpu"))
    payload = [tensor.fill_(1).expand(rows, -1).contiguous() for tensor in payload]
    gradient = torch.ones(rows, 1)
    sums, _ = batch_norm_native.reduce(gradient, *payload, bits=1, group_size=None)
    assert sums.item() == rows


def test_another_default_device_changes_nothing():
    codec, matrix = StochasticCodec(2), torch.randn(30, 8)
    payload = codec.encode_matrix(matrix, SEED)
    expected = [codec.decode(payload, 0, 30, 8, torch.float32), *codec.norm_coding(matrix).reduce(matrix, payload)]
    with torch.device("meta"):
        found = [codec.decode(payload, 0, 30, 8, torch.float32), *codec.norm_coding(matrix).reduce(matrix, payload)]
        out, bits = activations_native.relu(matrix, None)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert out.device == bits.device == matrix.device


def test_codes_that_lie_otherwise_are_read_right_and_not_written():
    """A saved-tensor hook may give back the same values with other strides."""
    codec, matrix = StochasticCodec(2), torch.randn(30, 8)
    payload = codec.encode_matrix(matrix, SEED)
    turned = [tensor.t().contiguous().t() for tensor in payload]
    coding, expected = codec.norm_coding(matrix), codec.decode(payload, 0, 30, 8, torch.float32)
    assert torch.equal(codec.decode(turned, 0, 30, 8, torch.float32), expected)
    assert torch.equal(coding.reduce(matrix, turned)[1], coding.reduce(matrix, payload)[1])
    vectors = torch.randn(3, 8)
    assert torch.equal(coding.grad_input(matrix, turned, *vectors), coding.grad_input(matrix, payload, *vectors))
    with pytest.raises(ValueError, match="'codes' and 'scales' must be contiguous"):
        codec.encode(matrix, turned, 0, SEED)
    gradient, bits = torch.randn(20, 8), torch.randint(0, 256, (40,), dtype=torch.uint8)
    found = activations_native.masked_grad(gradient, bits[::2], 1.0, 0.0)
    assert torch.equal(found, activations_native.masked_grad(gradient, bits[::2].clone(), 1.0, 0.0))
