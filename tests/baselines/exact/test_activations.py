"""ReLU, leaky ReLU, ELU and dropout of EXACT against PyTorch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rmm_gnn.baselines.exact import exact_dropout, exact_elu, exact_leaky_relu, exact_relu
from rmm_gnn.codecs import get_codec
from tests.nn.recording import saved_tensors, storages

SHAPES = [(), (1,), (0, 5), (7, 1), (5, 3), (4, 16), (2, 3, 9)]
PAIRS = {
    "relu": (exact_relu, F.relu),
    "leaky_relu": (lambda x: exact_leaky_relu(x, 0.2), lambda x: F.leaky_relu(x, 0.2)),
}


def outputs_and_gradients(function, x, grad_output):
    torch.manual_seed(11)
    x = x.detach().requires_grad_()
    out = function(x)
    (grad,) = torch.autograd.grad(out, x, grad_output)
    return out.detach(), grad, torch.get_rng_state()


def assert_same(ours, theirs, x):
    grad_output = torch.randn(x.shape).to(x.dtype)
    for mine, expected in zip(
        outputs_and_gradients(ours, x, grad_output), outputs_and_gradients(theirs, x, grad_output), strict=True
    ):
        assert mine.dtype == expected.dtype
        torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", PAIRS)
def test_masked_activations_are_those_of_torch(name, dtype, shape):
    assert_same(*PAIRS[name], torch.randn(shape).to(dtype))


@pytest.mark.parametrize("name", PAIRS)
def test_zeros_infinities_and_nan_go_where_torch_sends_them(name):
    assert_same(*PAIRS[name], torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1.0]))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(0, 5), (7, 1), (5, 3), (300, 16)], ids=str)
def test_dropout_is_that_of_torch_and_uses_the_generator_as_torch_does(p, shape):
    x = torch.randn(shape)
    assert_same(lambda x: exact_dropout(x, p), lambda x: F.dropout(x, p), x)
    assert_same(lambda x: exact_dropout(x, p, False), lambda x: F.dropout(x, p, False), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dropout_of_other_types_and_of_strided_tensors(dtype):
    for x in (torch.randn(50, 6).to(dtype), torch.randn(6, 50).T, torch.tensor([[float("inf"), float("nan")]] * 9)):
        assert_same(lambda x: exact_dropout(x, 0.4), lambda x: F.dropout(x, 0.4), x)


def test_a_nan_gradient_survives_dropout_as_in_torch():
    grads = []
    for function in (exact_dropout, F.dropout):
        torch.manual_seed(2)
        x = torch.ones(8, 8, requires_grad=True)
        grads.append(torch.autograd.grad(function(x, 0.5), x, torch.full((8, 8), float("nan")))[0])
    assert all(grad.isnan().all() for grad in grads)


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_dropout_refuses_what_torch_refuses(p):
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
        exact_dropout(torch.ones(3, requires_grad=True), p)


@pytest.mark.parametrize("shape", [(40, 16), (5, 3), (1,), (2, 3, 9)], ids=str)
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "dropout"])
def test_one_bit_an_entry_is_kept(name, shape):
    function = PAIRS[name][0] if name in PAIRS else exact_dropout
    x = torch.randn(shape, requires_grad=True)
    with saved_tensors() as saved:
        function(x)
    assert list(storages(saved).values()) == [(x.numel() + 7) // 8]


@pytest.mark.parametrize("function", [exact_relu, exact_leaky_relu, exact_dropout, exact_elu])
def test_nothing_is_kept_where_no_gradient_is_wanted(function):
    with saved_tensors() as saved:
        function(torch.randn(4, 4))
        with torch.no_grad():
            function(torch.randn(4, 4, requires_grad=True))
    assert not saved


@pytest.mark.parametrize("bits", [1, 2, 4, 8, None])
@pytest.mark.parametrize("shape", [(), (0, 5), (1,), (7, 1), (6, 11), (2, 3, 9)], ids=str)
def test_elu_takes_its_slope_at_the_input_as_read_back(monkeypatch, shape, bits):
    monkeypatch.setattr("rmm_gnn.baselines.exact.activations._TILE_BYTES", 2 * 4 * 11)
    x, grad_output = torch.randn(shape, requires_grad=True), torch.randn(shape)
    with saved_tensors() as saved:
        out = exact_elu(x, 0.7, bits=bits)
    torch.testing.assert_close(out, F.elu(x, 0.7), rtol=0, atol=0)
    width = shape[-1] if shape else 1
    codec = get_codec("fp32" if bits is None else f"int{bits}:scale=fp32")
    if x.numel():
        rows = x.numel() // width
        assert sum(storages(saved).values()) == codec.num_bytes(rows, width, x.dtype)
        read = codec.decode(list(saved), 0, rows, width, x.dtype).view(shape).requires_grad_()
        expected = torch.autograd.grad(F.elu(read, 0.7), read, grad_output)[0]
        torch.testing.assert_close(torch.autograd.grad(out, x, grad_output)[0], expected)
    else:
        assert torch.autograd.grad(out, x, grad_output)[0].shape == shape


def test_elu_is_close_to_exact_in_eight_bits_and_rounds_anew_at_every_call():
    x, grad_output = torch.randn(100, 16, requires_grad=True), torch.randn(100, 16)
    (exact,) = torch.autograd.grad(F.elu(x), x, grad_output)
    first, second = (torch.autograd.grad(exact_elu(x, bits=8), x, grad_output)[0] for _ in range(2))
    assert not torch.equal(first, second)
    assert (first - exact).norm() < 0.02 * exact.norm()


def test_elu_refuses_other_bits():
    with pytest.raises(ValueError, match="'bits' must be 1, 2, 4, 8 or None"):
        exact_elu(torch.ones(3), bits=5)


@pytest.mark.parametrize("function", [exact_relu, exact_leaky_relu, exact_dropout, exact_elu])
def test_double_backward_raises(function):
    x = torch.randn(4, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
