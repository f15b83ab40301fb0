"""The kernels of batch normalisation against its operators in plain torch."""

import pytest
import torch

import rmm_gnn.autograd.batch_norm  # noqa: F401
from rmm_gnn.codecs import get_codec
from rmm_gnn.kernels import launching_triton
from rmm_gnn.kernels.batch_norm_triton import encode_normalized, grad_input, reduce
from rmm_gnn.kernels.reference import accumulation_dtype
from tests.kernels.device import DEVICE, far_apart

SEED = torch.tensor(2**40 + 11, device=DEVICE)
EPS = 1e-5


def columns_of_many_scales(rows, columns):
    return torch.randn(rows, columns, device=DEVICE) * torch.logspace(-2, 2, columns, device=DEVICE) + 3


def kept_by_torch(x, name):
    """1/sigma, codes and scales, as the operator keeps them."""
    return torch.ops.rmm_gnn.batch_norm(x, None, None, None, None, 0.1, EPS, name, True, SEED, 1.0, "torch")[2]


def kept_by_kernel(x, name, start=0):
    codec, dtype = get_codec(name), accumulation_dtype(x.dtype)
    _, mean, inv_std = torch.native_batch_norm(x, None, None, None, None, True, 0.1, EPS)
    codes, scales = codec.empty(*x.shape, x.dtype, x.device)
    settings = {"bits": codec.bits, "group_size": codec.group_size}
    encode_normalized(x, mean.to(dtype), inv_std.to(dtype), codes, scales, SEED, start, **settings)
    return [codes, scales]


def assert_same(x, name, grad_output=None):
    """The same bytes; sums over rows are formed in another order, and what follows from them is not."""
    codec, (inv_std, *payload) = get_codec(name), kept_by_torch(x, name)
    assert all(map(torch.equal, kept_by_kernel(x, name), payload))
    settings = {"bits": codec.bits, "group_size": codec.group_size}
    grad_output = torch.randn(x.shape, device=DEVICE).to(x.dtype) if grad_output is None else grad_output
    weight = torch.rand(x.shape[1], dtype=x.dtype, device=DEVICE) + 0.5
    expected, expected_products, expected_sums = torch.ops.rmm_gnn.batch_norm_backward(
        grad_output, weight, [inv_std, *payload], name, True, 1.0, None, "torch"
    )
    sums, products = reduce(grad_output, *payload, **settings)
    normalized = codec.decode(payload, 0, *x.shape, inv_std.dtype, backend="torch").double()
    precision = torch.finfo(inv_std.dtype).eps
    for found, by_torch, terms in (
        (sums, expected_sums, grad_output.double()),
        (products, expected_products, grad_output.double() * normalized),
    ):
        assert found.dtype == by_torch.dtype and found.shape == by_torch.shape
        total = terms.abs().sum(0).amax().item()
        torch.testing.assert_close(found.double(), terms.sum(0), rtol=0.0, atol=8 * precision * total)

    means = (expected_sums / x.shape[0], expected_products / x.shape[0])
    scale = inv_std * weight.to(inv_std.dtype)
    grad_x = grad_input(grad_output, *payload, scale, *means, **settings)
    assert grad_x.stride() == expected.stride()
    # A product and a sum may be rounded at once by torch; where Triton is interpreted, bfloat16 is cut off.
    largest = grad_output.abs().amax().item() * (1 + normalized.abs().amax().item() ** 2)
    rounding = torch.finfo(x.dtype).eps if x.dtype.itemsize == 2 else 0.0
    assert grad_x.dtype == expected.dtype
    torch.testing.assert_close(grad_x / scale, expected / scale, rtol=rounding, atol=4 * precision * largest)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("rows", "columns", "settings"),
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
def test_same_bytes_and_gradients(rows, columns, settings, bits):
    assert_same(columns_of_many_scales(rows, columns), f"int{bits}{settings}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types(dtype):
    assert_same(columns_of_many_scales(100, 63).to(dtype), "int2")
    assert_same(columns_of_many_scales(100, 63).to(dtype), "int8:group_size=10,scale=fp32")


@pytest.mark.parametrize(
    "view",
    [lambda x: x.t(), lambda x: x[:, ::2], lambda x: x[::3], lambda x: x[:1].expand(50, -1), lambda x: x[:, :1]],
    ids=["transposed", "every other column", "every third row", "stride 0", "one column"],
)
def test_any_strides(view):
    x, grad_output = view(columns_of_many_scales(60, 64)), view(torch.randn(60, 64, device=DEVICE))
    assert_same(x, "int4", grad_output)


def test_sums_over_many_runs_of_rows_are_the_same_every_time():
    x, grad_output = columns_of_many_scales(9000, 3), torch.randn(9000, 3, device=DEVICE)
    assert_same(x, "int2", grad_output)
    codes, scales = kept_by_kernel(x, "int2")
    first, second = (reduce(grad_output, codes, scales, bits=2, group_size=None) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_rows_after_others_have_their_own_rounding():
    x = columns_of_many_scales(20, 30)
    codec, payload = get_codec("int2"), get_codec("int2").empty(27, 30, x.dtype, DEVICE)
    _, mean, inv_std = torch.native_batch_norm(x, None, None, None, None, True, 0.1, EPS)
    codec.encode((x - mean) * inv_std, payload, 7, SEED, backend="torch")
    assert torch.equal(kept_by_kernel(x, "int2", 7)[0], payload[0][7:])
    assert not torch.equal(kept_by_kernel(x, "int2")[0], payload[0][7:])


def test_inf_and_nan_stay_in_their_columns_and_rows():
    x = columns_of_many_scales(50, 24)
    for entry in (torch.nan, torch.inf):
        x[4, 3] = entry
        (_, *payload), (codes, scales) = kept_by_torch(x, "int2:group_size=8"), kept_by_kernel(x, "int2:group_size=8")
        torch.testing.assert_close(scales, payload[1], rtol=0.0, atol=0.0, equal_nan=True)
        assert scales.isnan()[:, 0].all() and scales[:, 1:3].isfinite().all()
        finite = torch.arange(24, device=DEVICE) >= 8
        decoded = [
            get_codec("int2:group_size=8").decode(kept, 0, 50, 24, x.dtype, backend="torch")
            for kept in ([codes, scales], payload)
        ]
        assert torch.equal(decoded[0][:, finite], decoded[1][:, finite])
        grad_output = torch.randn(50, 24, device=DEVICE)
        sums, products = reduce(grad_output, codes, scales, bits=2, group_size=8)
        assert torch.equal(products.isfinite(), finite) and sums.isfinite().all()
        ones = torch.ones(24, device=DEVICE)
        grad_x = grad_input(grad_output, codes, scales, ones, sums, products, bits=2, group_size=8)
        assert torch.equal(grad_x.isfinite(), finite.expand(50, -1))


def test_more_than_2_to_the_31_elements():
    assert_same(far_apart(5, 40, torch.float16), "int4", far_apart(5, 40, torch.float16))


def test_no_rows():
    codec, x = get_codec("int2"), torch.ones(0, 4, device=DEVICE)
    payload, ones = codec.empty(0, 4, x.dtype, DEVICE), torch.ones(4, device=DEVICE)
    encode_normalized(x, ones, ones, *payload, SEED, 0, bits=2, group_size=None)
    sums, products = reduce(x, *payload, bits=2, group_size=None)
    assert torch.equal(sums, torch.zeros(4, device=DEVICE)) and torch.equal(products, sums)
    assert grad_input(x, *payload, ones, ones, ones, bits=2, group_size=None).shape == (0, 4)


def test_they_are_refused_where_they_cannot_run(monkeypatch):
    monkeypatch.setattr(launching_triton, "is_interpreted", lambda kernel: False)
    x, ones, seed = torch.ones(8, 4), torch.ones(4), torch.tensor(0)
    codes, scales = get_codec("int2").empty(8, 4, x.dtype, x.device)
    settings = {"bits": 2, "group_size": None}
    calls = [
        lambda: encode_normalized(x, ones, ones, codes, scales, seed, 0, **settings),
        lambda: reduce(x, codes, scales, **settings),
        lambda: grad_input(x, codes, scales, ones, ones, ones, **settings),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"'backend' must be one that runs on cpu \(got 'triton'\). Use"):
            call()
