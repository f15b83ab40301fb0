"""ReLU and dropout in C against plain torch, bit for bit."""

import pytest
import torch

from rmm_gnn.autograd.dropout import apply_dropout, dropped_rows
from rmm_gnn.kernels import activations_native, native
from tests.kernels.compiler import NEEDS_COMPILER

pytestmark = NEEDS_COMPILER
SEED = torch.tensor(2**40 + 11)
TILE = 1 << 18
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
SHAPES = pytest.mark.parametrize(
    "shape", [(0,), (1,), (7,), (63, 1), (100, 40), (4097, 1), (TILE,), (TILE + 1,), (3, TILE - 5), (2, 3, 5)], ids=str
)


def both(monkeypatch, function):
    """What the function returns with the kernels and without them."""
    found = []
    for built in (True, False):
        monkeypatch.setattr(native, "is_built", lambda built=built: built)
        result = function()
        found.append(result if isinstance(result, tuple) else (result,))
    return zip(*found, strict=True)


def same(pairs):
    for found, expected in pairs:
        assert found.shape == expected.shape and found.is_contiguous() and expected.is_contiguous()
        torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)
        numbers = ~expected.isnan()
        assert torch.equal(found.signbit() & numbers, expected.signbit() & numbers)


def entries(shape, dtype):
    x = torch.randn(shape).to(dtype)
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38, -1e-40]).to(dtype)
    x.view(-1)[: len(odd)] = odd[: x.numel()]
    return x


@pytest.fixture(autouse=True)
def _kernels_are_used(monkeypatch, request):
    """What is compared with plain torch did come from the kernels."""
    calls = []
    for name in ("_activate", "masked_grad", "dropout"):
        own = getattr(activations_native, name)
        monkeypatch.setattr(activations_native, name, lambda *a, own=own, **k: (calls.append(own), own(*a, **k))[1])
    yield
    assert calls or "plain" in request.node.name


@SHAPES
@DTYPES
@pytest.mark.parametrize("slope", [None, 0.01, 0.0, -1.5])
def test_relu(shape, dtype, slope, monkeypatch):
    x, gradient = entries(shape, dtype), entries(shape, dtype).flip(0)
    same(both(monkeypatch, lambda: torch.ops.rmm_gnn.relu(x, slope, "auto")))
    bits = torch.ops.rmm_gnn.relu(x, slope, "auto")[1]
    same(both(monkeypatch, lambda: torch.ops.rmm_gnn.masked_grad(gradient, bits, 1.0, slope or 0.0, "auto")))


@SHAPES
@DTYPES
@pytest.mark.parametrize("p", [0.1, 0.5, 1 - 2.0**-32])
def test_dropout(shape, dtype, p, monkeypatch):
    x, gradient = entries(shape, dtype), entries(shape, dtype).flip(0)
    same(both(monkeypatch, lambda: apply_dropout(x, p, SEED)))
    same(both(monkeypatch, lambda: torch.ops.rmm_gnn.relu_dropout(x, p, SEED, "auto")))
    bits = torch.ops.rmm_gnn.relu_dropout(x, p, SEED, "auto")[1]
    same(both(monkeypatch, lambda: torch.ops.rmm_gnn.masked_grad(gradient, bits, 1 - p, 0.0, "auto")))


@pytest.mark.parametrize("height", [1, 7, 100])
def test_dropout_of_some_rows_at_a_time(height, monkeypatch):
    x = torch.randn(40, TILE // 16 + 3)
    rows = both(monkeypatch, lambda: torch.cat([rows.clone() for _, _, rows in dropped_rows(x, 0.3, SEED, height)]))
    same(rows)


@DTYPES
def test_any_strides(dtype, monkeypatch):
    matrix = torch.randn(50, 64).to(dtype)
    bits = torch.randint(0, 256, (50 * 64 // 8,), dtype=torch.uint8)
    for x in (matrix.t(), matrix[:, ::2], matrix[:1].expand(50, -1)):
        same(both(monkeypatch, lambda x=x: apply_dropout(x, 0.3, SEED, "auto")))
        same(both(monkeypatch, lambda x=x: torch.ops.rmm_gnn.relu_dropout(x, 0.3, SEED, "auto")))
        part = bits[: (x.numel() + 7) // 8]
        for divisor, slope in ((0.7, 0.0), (1.0, 0.2)):
            found = both(
                monkeypatch,
                lambda x=x, part=part, d=divisor, s=slope: torch.ops.rmm_gnn.masked_grad(x, part, d, s, "auto"),
            )
            same(found)


def test_relu_has_the_strides_that_torch_gives_it():
    matrix = torch.randn(50, 64)
    for x in (matrix.t(), matrix[:, ::2], matrix[:1].expand(50, -1), torch.randn(2, 3, 4, 5).permute(0, 3, 1, 2)):
        out, bits = torch.ops.rmm_gnn.relu(x, None, "native")
        assert out.stride() == torch.relu(x).stride() and torch.equal(out, torch.relu(x))
        assert torch.equal(bits, torch.ops.rmm_gnn.relu(x.contiguous(), None, "torch")[1])


def test_the_number_of_threads_changes_nothing():
    x, found = torch.randn(5 * TILE + 77), []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append([*torch.ops.rmm_gnn.relu_dropout(x, 0.2, SEED, "auto"), apply_dropout(x, 0.2, SEED)])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
