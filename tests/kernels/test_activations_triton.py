"""The kernels of the activations against their operators in plain torch: the same values and the same bits."""

import pytest
import torch

import rmm_gnn.autograd.dropout
import rmm_gnn.autograd.relu  # noqa: F401
from rmm_gnn.kernels import launching_triton
from rmm_gnn.kernels.activations_triton import TILE, dropout, masked_grad, relu, relu_dropout
from tests.kernels.device import DEVICE, far_apart

SEED = torch.tensor(2**40 + 11, device=DEVICE)
OPS = torch.ops.rmm_gnn


def with_odd_entries(*shape, dtype=torch.float32):
    """Random numbers, and among them inf, nan and zeros of both signs."""
    x = torch.randn(*shape, device=DEVICE).to(dtype)
    odd = torch.tensor([-0.0, torch.nan, torch.inf, -torch.inf, 0.0], dtype=dtype, device=DEVICE)
    x.view(-1)[::3][:5] = odd[: x.view(-1)[::3].numel()]
    return x


def assert_same_values(values, expected):
    # Where Triton is interpreted, float32 becomes bfloat16 by cutting it off: once, or twice.
    tolerance = 2 * torch.finfo(values.dtype).eps if values.dtype == torch.bfloat16 and not values.is_cuda else 0.0
    torch.testing.assert_close(values, expected, rtol=tolerance, atol=0.0, equal_nan=True)
    assert values.stride() == expected.stride() or 1 in values.shape
    if not values.is_cuda:  # where torch's ReLU keeps the sign of a zero
        numbers = ~expected.isnan()
        assert torch.equal(values.signbit() & numbers, expected.signbit() & numbers)


def assert_same(x, p=0.3, slope=0.1):
    for negative_slope in (None, slope):
        (out, bits), (expected, expected_bits) = relu(x, negative_slope), OPS.relu(x, negative_slope, "torch")
        assert_same_values(out, expected)
        assert torch.equal(bits, expected_bits)
    (out, bits), (expected, expected_bits) = relu_dropout(x, p, SEED), OPS.relu_dropout(x, p, SEED, "torch")
    assert_same_values(out, expected)
    assert torch.equal(bits, expected_bits)
    assert_same_values(dropout(x, p, SEED), OPS.dropout(x, p, SEED, "torch")[0])
    for divisor, other in ((1.0, 0.0), (1 - p, 0.0), (1.0, slope), (1 - p, slope)):
        assert_same_values(masked_grad(x, bits, divisor, other), OPS.masked_grad(x, bits, divisor, other, "torch"))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 768), (63, 40), (100, 256), (4097, 1), (4097, 40)], ids=str)
def test_same_values_and_bits(rows, columns):
    assert_same(with_odd_entries(rows, columns))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types(dtype):
    assert_same(with_odd_entries(63, 101, dtype=dtype))


@pytest.mark.parametrize(("first", "last"), [(0, 700), (5, 9), (TILE - 3, TILE + 200), (TILE + 1, TILE + 2)])
def test_dropout_of_a_part(first, last):
    whole = with_odd_entries(TILE + 1001)
    expected = OPS.dropout(whole, 0.3, SEED, "torch")[0][first:last]
    assert_same_values(dropout(whole[first:last], 0.3, SEED, first), expected)


@pytest.mark.parametrize("entries", [TILE, TILE + 1001], ids=["one tile", "two tiles"])
def test_tiles(entries):
    assert_same(with_odd_entries(entries))


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.t(),
        lambda x: x[:, ::2],
        lambda x: x[::3],
        lambda x: x[:1].expand(50, -1),
        lambda x: x[:, 3],
        lambda x: x.view(10, 6, -1).transpose(0, 2),
        lambda x: x[0, 0],
    ],
    ids=["transposed", "every other column", "every third row", "stride 0", "one column", "three dimensions", "scalar"],
)
def test_any_strides(view):
    assert_same(view(with_odd_entries(60, 64)))


def test_strided_over_several_tiles():
    assert_same(with_odd_entries(1000, 600)[:, ::2].t())


@pytest.mark.parametrize("p", [1e-12, 0.5, 0.999, 1 - 1e-12])
def test_any_probability(p):
    x = with_odd_entries(63, 40, dtype=torch.float64)
    assert_same_values(dropout(x, p, SEED), OPS.dropout(x, p, SEED, "torch")[0])
    (out, bits), (expected, expected_bits) = relu_dropout(x, p, SEED), OPS.relu_dropout(x, p, SEED, "torch")
    assert_same_values(out, expected)
    assert torch.equal(bits, expected_bits)


def test_slopes_are_not_rounded_for_float64():
    assert_same(with_odd_entries(10, 10, dtype=torch.float64), p=1 / 3, slope=1 / 7)
    assert_same(with_odd_entries(10, 10, dtype=torch.float64), slope=-0.3)


def test_more_than_2_to_the_31_elements():
    assert_same(far_apart(5, 40, torch.float16))


def test_no_entries():
    assert_same(torch.ones(0, 4, device=DEVICE))
    assert relu(torch.ones(0, 4, device=DEVICE), None)[1].shape == (0,)


def test_they_are_refused_where_they_cannot_run(monkeypatch):
    monkeypatch.setattr(launching_triton, "is_interpreted", lambda kernel: False)
    x, seed, bits = torch.ones(8), torch.tensor(0), torch.zeros(1, dtype=torch.uint8)
    calls = [
        lambda: relu(x, None),
        lambda: dropout(x, 0.5, seed),
        lambda: relu_dropout(x, 0.5, seed),
        lambda: masked_grad(x, bits, 1.0, 0.0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"'backend' must be one that runs on cpu \(got 'triton'\). Use"):
            call()
