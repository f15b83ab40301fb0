"""exact_batch_norm: PyTorch's forward; backward from the rounded input, with the bias its docstring states."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F

from rmm_gnn.baselines.exact import ExactBatchNorm1d, exact_batch_norm
from rmm_gnn.codecs import get_codec
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors


def problem(rows=40, channels=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(rows, channels, generator=generator, dtype=torch.float64) + 1.0
    weight = torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5
    bias = torch.randn(channels, generator=generator, dtype=torch.float64)
    grad_output = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    return [t.to(dtype).requires_grad_() for t in (x, weight, bias)] + [grad_output.to(dtype)]


def gradients(x, weight, bias, grad_output, **settings):
    out = exact_batch_norm(x, None, None, weight, bias, True, **settings)
    return torch.autograd.grad(out, (x, weight, bias), grad_output)


def exact_gradients(x, weight, bias, grad_output):
    return torch.autograd.grad(F.batch_norm(x, None, None, weight, bias, True), (x, weight, bias), grad_output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(40, 6), (2, 1), (10, 6, 3), (1, 6, 3), (4, 3, 2, 5)], ids=str)
def test_forward_and_running_statistics_are_those_of_torch(shape, dtype):
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    results = []
    for function in (exact_batch_norm, F.batch_norm):
        mean, var = torch.zeros(shape[1], dtype=dtype), torch.ones(shape[1], dtype=dtype)
        results.append((function(x, mean, var, training=True, momentum=0.3), mean, var))
    assert results[0][0].shape == x.shape
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(40, 6), (10, 6, 3)], ids=str)
@pytest.mark.parametrize("affine", list(itertools.product([True, False], repeat=2)), ids=str)
def test_gradients_are_exact_without_rounding(monkeypatch, affine, shape):
    monkeypatch.setattr("rmm_gnn.baselines.exact.batch_norm._TILE_BYTES", 7 * 6 * 4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.rand(6, dtype=torch.float64, requires_grad=True) if on else None for on in affine)
    inputs = [t for t in (x, weight, bias) if t is not None]
    grad_output = torch.randn(shape, dtype=torch.float64)
    ours = torch.autograd.grad(exact_batch_norm(x, None, None, weight, bias, True, bits=None), inputs, grad_output)
    theirs = torch.autograd.grad(F.batch_norm(x, None, None, weight, bias, True), inputs, grad_output)
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact)


def test_backward_is_torchs_formula_at_the_input_as_read_back():
    x, weight, bias, grad_output = problem()
    with saved_tensors() as saved:
        out = exact_batch_norm(x, None, None, weight, bias, True, bits=2)
    mean, deviation, *payload = saved[1:]
    read = get_codec("int2:scale=fp32").decode(payload, 0, 40, 6, torch.float32)
    expected = torch.ops.aten.native_batch_norm_backward(
        grad_output, read, weight, None, None, mean, deviation, True, 1e-5, [True, True, True]
    )
    for ours, theirs in zip(torch.autograd.grad(out, (x, weight, bias), grad_output), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradient_of_bias_is_exact_and_that_of_weight_unbiased():
    x, weight, bias, grad_output = problem()
    grad_output = (grad_output + x).detach()
    _, exact_weight, exact_bias = exact_gradients(x, weight, bias, grad_output)
    torch.testing.assert_close(gradients(x, weight, bias, grad_output)[2], exact_bias)
    assert_unbiased(lambda: gradients(x, weight, bias, grad_output)[1], exact_weight, draws=300)


def test_bias_of_the_gradient_of_x_is_the_stated_one():
    """z-score at 5 sigma over 2500 seeds; both no bias and twice as much are rejected."""
    draws = 2500
    x, weight, bias, grad_output = problem(rows=8, channels=5, dtype=torch.float64)
    rows, eps = x.shape[0], 1e-5
    deviation = (x.detach().var(0, correction=0) + eps).sqrt()
    variance = get_codec("int1:scale=fp32").variance(x.detach())
    stated = -weight.detach() / rows * grad_output * variance / deviation**3
    exact = exact_gradients(x, weight, bias, grad_output)[0]
    samples = torch.stack(
        [((gradients(x, weight, bias, grad_output, bits=1)[0] - exact) * stated).sum() for _ in range(draws)]
    )
    truth, sigma = stated.square().sum(), samples.std() / draws**0.5
    for factor, agrees in ((1.0, True), (0.0, False), (2.0, False)):
        assert ((samples.mean() - factor * truth).abs() < 5 * sigma) == agrees


def test_gradients_are_close_to_exact_in_eight_bits():
    x, weight, bias, grad_output = problem(rows=500, channels=32)
    exact = exact_gradients(x, weight, bias, grad_output)
    for ours, theirs in zip(gradients(x, weight, bias, grad_output, bits=8), exact, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("bits", [1, 2, 4, 8, None])
@pytest.mark.parametrize("channels", [1, 5, 16])
def test_saved_bytes(bits, channels):
    x, weight, bias, _ = problem(channels=channels)
    with saved_tensors() as saved:
        exact_batch_norm(x, None, None, weight, bias, True, bits=bits)
    row_bytes = 4 * channels if bits is None else (channels * bits + 7) // 8 + 8
    statistics = 2 * 4 * channels
    assert sum(kept_storages(saved, besides=[weight]).values()) == 40 * row_bytes + statistics


@pytest.mark.parametrize("frozen", list(itertools.product([True, False], repeat=3)), ids=str)
def test_needs_input_grad_is_honoured(frozen):
    *inputs, grad_output = problem()
    for tensor, off in zip(inputs, frozen, strict=True):
        tensor.requires_grad_(not off)
    with saved_tensors() as saved:
        out = exact_batch_norm(inputs[0], None, None, *inputs[1:], True)
    assert bool(saved) == (not (frozen[0] and frozen[1]))
    if not all(frozen):
        out.backward(grad_output)
    assert [tensor.grad is None for tensor in inputs] == list(frozen)


def test_low_types_with_parameters_in_float32():
    x, weight, bias, grad_output = problem(rows=200)
    low = x.detach().bfloat16().requires_grad_()
    out = exact_batch_norm(low, None, None, weight, bias, True, bits=8)
    assert out.dtype == torch.bfloat16
    ours = torch.autograd.grad(out, (low, weight, bias), grad_output.bfloat16())
    assert [grad.dtype for grad in ours] == [torch.bfloat16, torch.float32, torch.float32]
    for mine, exact in zip(ours, exact_gradients(x, weight, bias, grad_output), strict=True):
        torch.testing.assert_close(mine.float(), exact, rtol=0.05, atol=0.05)


def test_nan_reaches_the_gradients():
    x, weight, bias, grad_output = problem()
    spoiled = grad_output.clone()
    spoiled[3, 2] = float("nan")
    grad_x, grad_weight, grad_bias = gradients(x, weight, bias, spoiled)
    assert grad_x[:, 2].isnan().all() and grad_weight[2].isnan() and grad_bias[2].isnan()
    x.data[3, 2] = float("inf")
    assert gradients(x, weight, bias, grad_output)[1][2].isnan()


def test_x_may_change_in_place():
    x, weight, bias, grad_output = problem()
    for bits in (2, None):
        grads = []
        for change in (False, True):
            torch.manual_seed(4)
            values = x.detach().clone()
            out = exact_batch_norm(values, None, None, weight, bias, True, bits=bits)
            if change:
                values.zero_()
            grads.append(torch.autograd.grad(out, weight, grad_output)[0])
        assert torch.equal(*grads)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("track", [True, False])
def test_the_layer_is_torchs_in_training_and_in_eval(momentum, track):
    theirs = torch.nn.BatchNorm1d(6, momentum=momentum, track_running_stats=track)
    ours = ExactBatchNorm1d(6, momentum=momentum, track_running_stats=track)
    ours.load_state_dict(theirs.state_dict())
    for _ in range(3):
        x = torch.randn(20, 6, requires_grad=True)
        torch.testing.assert_close(ours(x), theirs(x))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    x = torch.randn(5, 6, requires_grad=True)
    state = torch.get_rng_state()
    with saved_tensors() as saved:
        out = ours.eval()(x)
    assert torch.equal(out, theirs.eval()(x)) and torch.equal(state, torch.get_rng_state())
    assert not any(tensor.dtype == torch.uint8 for tensor in saved)


def test_the_layer_draws_also_without_grad_mode_and_copies():
    layer = copy.deepcopy(ExactBatchNorm1d(6, bits=4))
    state = torch.get_rng_state()
    with torch.no_grad():
        layer(torch.randn(5, 6))
        drawn = torch.get_rng_state()
        torch.set_rng_state(state)
        torch.randn(5, 6)
    assert not torch.equal(drawn, torch.get_rng_state())
    assert repr(layer).endswith("bits=4)")


@pytest.mark.parametrize(
    ("shape", "settings", "match"),
    [
        ((1, 6), {}, "Expected more than 1 value per channel"),
        ((4, 6), {"eps": -1.0}, "batch_norm eps must be"),
        ((4, 6), {"bits": 3}, "'bits' must be 1, 2, 4, 8 or None"),
    ],
)
def test_errors(shape, settings, match):
    with pytest.raises(ValueError, match=match):
        exact_batch_norm(torch.randn(shape, requires_grad=True), None, None, training=True, **settings)


def test_no_rows_end_as_in_torch():
    x = torch.randn(0, 6, requires_grad=True)
    assert exact_batch_norm(x, None, None, training=True).shape == F.batch_norm(x, None, None, training=True).shape


def test_double_backward_raises():
    x, weight, bias, _ = problem()
    out = exact_batch_norm(x, None, None, weight, bias, True)
    with pytest.raises(RuntimeError, match="exact_batch_norm cannot be differentiated twice"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)
