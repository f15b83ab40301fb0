"""exact_linear: exact where it says so, unbiased with the stated variance where it estimates, the announced bytes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from rmm_gnn.baselines.exact import ExactConfig, ExactLinear, exact_linear
from rmm_gnn.baselines.exact.kept_input import keep_input, kept_like
from rmm_gnn.baselines.exact.projection import project, project_back, projection
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

SEED = 41
SETTINGS = [(0.25, 2), (0.25, None), (1.0, 2), (0.5, 1), (0.3, 8)]


def problem(dtype=torch.float64, rows=60, features=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator, dtype=torch.float64) + 1.0
    weight = torch.randn(4, features, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    grad_output = torch.randn(rows, 4, generator=generator, dtype=torch.float64) + 1.0
    return [t.to(dtype).requires_grad_() for t in (x, weight, bias)] + [grad_output.to(dtype)]


def rebuilt_input(x, config, seed):
    """X_q R^T with R written out."""
    kept = config.kept_features(x.shape[1])
    r = projection(x.shape[1], kept, seed, x.dtype) if kept < x.shape[1] else torch.eye(kept, dtype=x.dtype)
    rows = config.codec.decode(config.codec.encode_matrix(x @ r, seed), 0, x.shape[0], kept, x.dtype)
    return rows @ r.T


@pytest.mark.parametrize(("features", "size"), [(1, 1), (7, 3), (256, 32), (33, 33)])
def test_projection_in_blocks_is_the_product_with_r(monkeypatch, features, size):
    monkeypatch.setattr("rmm_gnn.baselines.exact.projection._BLOCK_ENTRIES", 3 * size)
    seed = torch.tensor(SEED)
    r = projection(features, size, seed, torch.float64)
    assert r.abs().sub(size**-0.5).abs().max() < 1e-12
    x, y = torch.randn(20, features, dtype=torch.float64), torch.randn(5, size, dtype=torch.float64)
    torch.testing.assert_close(project(x, size, seed), x @ r)
    torch.testing.assert_close(project_back(y, features, seed), y @ r.T)


@pytest.mark.parametrize(("kept_frac", "bits"), SETTINGS)
def test_gradients_against_the_formula_written_out(monkeypatch, kept_frac, bits):
    monkeypatch.setattr("rmm_gnn.baselines.exact.kept_input._TILE_BYTES", 12 * 4 * 7)
    config = ExactConfig(kept_frac, bits)
    x, weight, bias, grad_output = problem()
    out = exact_linear(x, weight, bias, config=config, seed=SEED)
    assert torch.equal(out, F.linear(x, weight, bias))
    out.backward(grad_output)
    torch.testing.assert_close(x.grad, grad_output @ weight)
    torch.testing.assert_close(bias.grad, grad_output.sum(0))
    expected = grad_output.T @ rebuilt_input(x.detach(), config, torch.tensor(SEED))
    torch.testing.assert_close(weight.grad, expected, rtol=1e-6, atol=1e-6)


def test_gradcheck_of_x_and_bias():
    x, weight, bias, _ = problem(rows=7)
    config = ExactConfig(0.25, 2)
    assert torch.autograd.gradcheck(lambda x, b: exact_linear(x, weight, b, config=config, seed=SEED), (x, bias))


@pytest.mark.parametrize(("kept_frac", "bits", "draws"), [(0.75, 2, 1500), (1.0, 2, 150), (0.75, None, 1400)])
def test_weight_gradient_is_unbiased(kept_frac, bits, draws):
    generator = torch.Generator().manual_seed(2)
    x, grad_output = (torch.randn(60, width, generator=generator) for width in (12, 16))
    weight = torch.zeros(16, 12, requires_grad=True)
    config = ExactConfig(kept_frac, bits)

    def draw():
        return torch.autograd.grad(exact_linear(x, weight, config=config), weight, grad_output)[0]

    assert_unbiased(draw, grad_output.T @ x, draws=draws)


@pytest.mark.parametrize(("kept_frac", "bits"), [(0.5, None), (0.5, 1), (1.0, 1), (0.25, 2)])
def test_variance_is_the_stated_one(kept_frac, bits):
    """z-score at 5 sigma over 1200 seeds; one 25 % larger is rejected."""
    rows, width, draws = 30, 12, 1200
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64) + 0.5
    grad_output = torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    weight = torch.zeros(4, width, dtype=torch.float64, requires_grad=True)
    config = ExactConfig(kept_frac, bits)
    size, exact = config.kept_features(width), grad_output.T @ x
    first = (width - 1) / size * exact.square().sum() if size < width else 0.0

    errors, predictions = [], []
    for number in range(draws):
        seed = torch.tensor(number)
        out = exact_linear(x, weight, config=config, seed=seed)
        errors.append((torch.autograd.grad(out, weight, grad_output)[0] - exact).square().sum())
        kept = project(x, size, seed) if size < width else x
        rounding = config.codec.variance(kept).sum(1) @ grad_output.square().sum(1)
        predictions.append(first + (width / size if size < width else 1.0) * rounding)
    # Both vary with R: what counts is their difference.
    errors, predictions = torch.stack(errors), torch.stack(predictions)
    for factor, agrees in ((1.0, True), (1.25, False)):
        difference = errors - factor * predictions
        assert (difference.mean().abs() < 5 * difference.std() / draws**0.5) == agrees


@pytest.mark.parametrize("frozen", list(itertools.product([True, False], repeat=3)), ids=str)
def test_needs_input_grad_is_honoured(frozen):
    x, weight, bias, grad_output = problem()
    for tensor, off in zip((x, weight, bias), frozen, strict=True):
        tensor.requires_grad_(not off)
    config = ExactConfig(0.25, 2)
    with saved_tensors() as saved:
        out = exact_linear(x, weight, bias, config=config, seed=SEED)
    kept = sum(kept_storages(saved, besides=[weight]).values())
    assert kept == (0 if frozen[1] else config.saved_bytes(60, 12, torch.float64))
    if all(frozen):
        assert not out.requires_grad
        return
    out.backward(grad_output)
    assert [tensor.grad is None for tensor in (x, weight, bias)] == list(frozen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kept_frac", "bits"), SETTINGS)
def test_saved_bytes_equal_the_formula(kept_frac, bits, dtype):
    x, weight, bias, _ = problem(dtype)
    config = ExactConfig(kept_frac, bits)
    with saved_tensors() as saved:
        exact_linear(x, weight, bias, config=config)
    assert sum(kept_storages(saved, besides=[weight]).values()) == config.saved_bytes(60, 12, dtype)
    assert not any(tensor.data_ptr() == x.data_ptr() for tensor in saved)
    real, traced = keep_input(x.detach(), config, torch.tensor(1)), kept_like(x.detach(), config)
    assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in traced]


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 3, 5, 12), (1, 12)])
def test_any_leading_dimensions(shape):
    _, weight, bias, _ = problem(torch.float32)
    x = torch.randn(shape, requires_grad=True)
    out = exact_linear(x, weight, bias, config=ExactConfig(1.0, None))
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(out, expected)
    inputs = (x, weight, bias)
    for ours, theirs in zip(
        torch.autograd.grad(out.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("features", [1, 3, 5, 9])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, None])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_odd_shapes(features, bits, rows):
    x = torch.randn(rows, features)
    weight = torch.randn(2, features, requires_grad=True)
    exact_linear(x, weight, config=ExactConfig(0.4, bits)).sum().backward()
    assert weight.grad.shape == (2, features) and weight.grad.isfinite().all()
    if rows == 0:
        assert not weight.grad.any()


def test_strided_inputs():
    _, weight, _, _ = problem(torch.float32)
    config = ExactConfig(0.25, 2)
    for x in (torch.randn(12, 60).T, torch.randn(120, 24)[::2, ::2], torch.randn(12).expand(60, 12)):
        grads = [
            torch.autograd.grad(exact_linear(version, weight, config=config, seed=SEED).sum(), weight)[0]
            for version in (x, x.contiguous())
        ]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_every_call_has_a_projection_of_its_own_and_manual_seed_replays_them():
    x, weight, _, _ = problem()

    def grads():
        torch.manual_seed(5)
        return [
            torch.autograd.grad(exact_linear(x, weight, config=ExactConfig(0.25, None)).sum(), weight)[0]
            for _ in range(3)
        ]

    first, second = grads(), grads()
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(first, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_retain_graph_gives_the_same_gradient_twice():
    x, weight, _, _ = problem()
    loss = exact_linear(x, weight, config=ExactConfig()).square().sum()
    first, second = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_double_backward_raises():
    x, weight, _, _ = problem()
    out = exact_linear(x, weight, config=ExactConfig())
    with pytest.raises(RuntimeError, match="exact_linear cannot be differentiated twice"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)


def test_x_may_change_in_place():
    x, weight, _, grad_output = problem()
    x = x.detach()
    for config in (ExactConfig(0.25, 2), ExactConfig(1.0, None)):
        values = x.clone()
        out = exact_linear(values, weight, config=config, seed=SEED)
        values.zero_()
        (grad,) = torch.autograd.grad(out, weight, grad_output)
        torch.testing.assert_close(grad, grad_output.T @ rebuilt_input(x, config, torch.tensor(SEED)))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize(("kept_frac", "bits"), SETTINGS)
def test_inf_and_nan_reach_the_weight_gradient(kept_frac, bits, bad):
    for spoil_x in (True, False):
        x, weight, _, grad_output = problem(torch.float32)
        x = x.detach()
        (x if spoil_x else grad_output)[37, 2] = bad
        exact_linear(x, weight, config=ExactConfig(kept_frac, bits)).backward(grad_output)
        assert not torch.isfinite(weight.grad[:, 2] if spoil_x else weight.grad[2]).any()


def test_autocast_keeps_the_low_type():
    x, weight, bias, _ = problem(torch.float32)
    config = ExactConfig(0.5, None)
    with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors() as saved:
        out = exact_linear(x, weight, bias, config=config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert out.dtype == torch.bfloat16 and torch.equal(out, F.linear(x, weight, bias))
    low_weight = 2 * weight.numel()
    assert sum(kept_storages(saved, besides=[]).values()) == config.saved_bytes(60, 12, torch.bfloat16) + low_weight
    out.float().square().sum().backward()
    assert weight.grad.dtype == x.grad.dtype == bias.grad.dtype == torch.float32


def test_backward_inside_autocast_sums_in_float32():
    """Rows of one sign whose bfloat16 sum would stall at 256."""
    x, weight = torch.ones(4096, 2), torch.zeros(1, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        exact_linear(x, weight, config=ExactConfig(1.0, 8)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((1, 2), 4096.0), rtol=1e-2, atol=0)


def test_without_grad_mode_nothing_is_kept_but_the_generator_moves():
    x, weight, _, _ = problem()
    state = torch.get_rng_state()
    with torch.no_grad(), saved_tensors() as saved:
        exact_linear(x, weight, config=ExactConfig())
    assert not saved and not torch.equal(torch.get_rng_state(), state)
    weight.requires_grad_(False)
    state = torch.get_rng_state()
    exact_linear(x, weight, config=ExactConfig())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_with_the_same_projection_and_the_next_step_has_another(reentrant):
    x = problem(torch.float32)[0]
    layer = ExactLinear(12, 4, bits=None)
    grads = {}
    for name in ("plain", "checkpointed"):
        torch.manual_seed(9)
        for step in range(2):
            out = checkpoint(layer, x, use_reentrant=reentrant) if name == "checkpointed" else layer(x)
            grads[name, step] = torch.autograd.grad(out.sum(), layer.weight)[0] if not reentrant else None
            if reentrant:
                layer.weight.grad = None
                out.sum().backward()
                grads[name, step] = layer.weight.grad
    assert all(torch.equal(grads["plain", step], grads["checkpointed", step]) for step in range(2))
    assert not torch.equal(grads["plain", 0], grads["plain", 1])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"x": torch.ones(3, 5)}, ValueError, "'x' must have 12 features"),
        ({"x": torch.ones(3, 12).to_sparse()}, TypeError, "'x' must be a dense tensor"),
        ({"x": torch.ones(3, 12, dtype=torch.float64)}, TypeError, "'weight' must have the type of 'x'"),
        ({"config": 0.1}, TypeError, r"'config' must be an ExactConfig \(got float\)"),
        ({"seed": 1.5}, TypeError, "'seed' must be an int or an int64 scalar tensor"),
    ],
)
def test_errors(arguments, error, match):
    call = {"x": torch.ones(3, 12), "weight": torch.ones(4, 12), "config": ExactConfig(), "seed": 0} | arguments
    with pytest.raises(error, match=match):
        exact_linear(call.pop("x"), call.pop("weight"), **call)
