"""The core operator: exact where it says so, the dense formula where it estimates, and the announced bytes."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.compression import compress, compress_like
from tests.sketches.cases import CASES, norms_for

FAMILY = pytest.mark.parametrize("family", CASES.values(), ids=CASES.keys())
SEED = 41


def problem(dtype=torch.float64, num_rows=60):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, 6, generator=generator, dtype=torch.float64) + 1.0
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    grad_output = torch.randn(num_rows, 4, generator=generator, dtype=torch.float64)
    return [t.to(dtype).requires_grad_() for t in (x, weight, bias)] + [grad_output.to(dtype)]


def dense_weight_grad(x, grad_output, config):
    """Algorithm 1 with S written out: (S^T Y)^T S^T (X - 1 m^T) + (Y^T 1) m^T."""
    seed, size = torch.tensor(SEED), config.sketch_size(x.shape[0])
    mean = x.mean(0) if config.center else torch.zeros_like(x[0])
    norms = norms_for(config.family, x.shape[0])
    state = config.family.prepare(x, mean if config.center else None, seed, size, 2**20, norms)
    s = config.family.to_dense(x.shape[0], size, seed, state=state, dtype=torch.float64)
    return (s.T @ grad_output).T @ (s.T @ (x - mean)) + torch.outer(grad_output.sum(0), mean)


def saved(function):
    """Run ``function``; return its result and the distinct storages that autograd keeps, by address."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = (tensor, tensor.untyped_storage().nbytes())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return result, storages


@FAMILY
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("workspace_bytes", [2**26, 2**10])
def test_gradients_against_the_dense_formula(family, center, workspace_bytes):
    config = RMMConfig(rate=0.3, sketch=family, center=center, workspace_bytes=workspace_bytes)
    x, weight, bias, grad_output = problem()
    out = rmm_linear(x, weight, bias, config=config, seed=SEED, row_norms=norms_for(family, 60))
    assert torch.equal(out, F.linear(x, weight, bias))
    out.backward(grad_output)
    torch.testing.assert_close(x.grad, grad_output @ weight)
    torch.testing.assert_close(bias.grad, grad_output.sum(0))
    torch.testing.assert_close(weight.grad, dense_weight_grad(x.detach(), grad_output, config), rtol=1e-5, atol=1e-5)


@FAMILY
def test_gradcheck_of_x_and_bias(family):
    x, weight, bias, _ = problem(num_rows=9)
    config = RMMConfig(rate=0.4, sketch=family)
    assert torch.autograd.gradcheck(lambda x, b: rmm_linear(x, weight, b, config=config, seed=SEED), (x, bias))


@pytest.mark.parametrize("family", ["count_sketch", "row_sampling"])
def test_full_rate_gives_the_exact_gradient(family):
    x, weight, bias, grad_output = problem()
    rmm_linear(x, weight, bias, config=RMMConfig(rate=1.0, sketch=family)).backward(grad_output)
    torch.testing.assert_close(weight.grad, grad_output.T @ x)


@pytest.mark.parametrize("center", [True, False])
def test_mean_over_seeds_is_the_exact_gradient(center):
    """z-score over 1000 seeds, and the same test on a gradient 5 % too large fails."""
    x, weight, _, grad_output = problem()
    grad_output = grad_output.detach() + 1.0
    config, exact = RMMConfig(rate=0.3, center=center), grad_output.T @ x.detach()
    estimates = []
    for seed in range(1000):
        weight.grad = None
        rmm_linear(x, weight, config=config, seed=seed).backward(grad_output)
        estimates.append((weight.grad * exact).sum() / exact.square().sum())
    estimates = torch.stack(estimates)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - 1) < 5 * error
    assert abs(1.05 * estimates.mean() - 1) > 5 * error


@pytest.mark.parametrize(("needs_x", "needs_weight", "needs_bias"), list(itertools.product([True, False], repeat=3)))
def test_needs_input_grad_is_honoured(needs_x, needs_weight, needs_bias):
    x, weight, bias, grad_output = problem()
    for tensor, needed in ((x, needs_x), (weight, needs_weight), (bias, needs_bias)):
        tensor.requires_grad_(needed)
    config = RMMConfig(rate=0.2)
    out, storages = saved(lambda: rmm_linear(x, weight, bias, config=config, seed=SEED))
    if not (needs_x or needs_weight or needs_bias):
        assert not out.requires_grad and not storages
        return
    out.backward(grad_output)
    assert [t.grad is not None for t in (x, weight, bias)] == [needs_x, needs_weight, needs_bias]
    weight_bytes = weight.untyped_storage().nbytes() if needs_x else 0
    kept = config.saved_bytes(60, 6, torch.float64) if needs_weight else 0
    assert sum(nbytes for _, nbytes in storages.values()) == weight_bytes + kept


@FAMILY
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("codec", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_saved_bytes_equal_the_formula(family, center, codec, dtype):
    x, weight, bias, _ = problem(dtype)
    x.requires_grad_(False)
    config = RMMConfig(rate=0.3, sketch=family, center=center, codec=codec)
    _, storages = saved(lambda: rmm_linear(x, weight, bias, config=config, row_norms=norms_for(family, 60)))
    assert sum(nbytes for _, nbytes in storages.values()) == config.saved_bytes(60, 6, dtype)
    assert x.untyped_storage().data_ptr() not in storages


@FAMILY
def test_traced_shapes_are_the_real_ones(family):
    x = torch.randn(37, 5)
    for center in (True, False):
        config = RMMConfig(rate=0.3, sketch=family, center=center, codec="bf16")
        real = compress(x, config, torch.tensor(1), norms_for(family, 37)).to_list()
        traced = compress_like(x.to("meta"), config).to_list()
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in traced]


@pytest.mark.parametrize("codec", ["bf16", "fp16"])
def test_rounded_storage_changes_the_gradient_by_the_rounding(codec):
    x, weight, _, grad_output = problem(torch.float32)
    gradients = {}
    for name in ("fp32", codec):
        weight.grad = None
        rmm_linear(x, weight, config=RMMConfig(codec=name), seed=SEED).backward(grad_output)
        gradients[name] = weight.grad
    difference = (gradients["fp32"] - gradients[codec]).norm() / gradients["fp32"].norm()
    assert 0 < difference < 1e-2


@pytest.mark.parametrize("shape", [(6,), (60, 6), (5, 12, 6), (2, 3, 10, 6), (1, 6)])
def test_any_leading_dimensions(shape):
    _, weight, bias, _ = problem(torch.float32)
    x = torch.randn(shape, requires_grad=True)
    out = rmm_linear(x, weight, bias, config=RMMConfig(rate=1.0))
    expected = F.linear(x, weight, bias)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    ours = [x.grad.clone(), weight.grad.clone(), bias.grad.clone()]
    theirs = torch.autograd.grad(expected.square().sum(), (x, weight, bias))
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-4)


@FAMILY
def test_strided_and_expanded_inputs_and_gradients(family):
    _, weight, bias, _ = problem(torch.float32)
    config = RMMConfig(rate=0.3, sketch=family)
    for x in (torch.randn(6, 60).T, torch.randn(120, 12)[::2, ::2], torch.randn(6).expand(60, 6)):
        gradients = []
        for version in (x, x.contiguous()):
            weight.grad = None
            # sum() hands back a gradient with strides of zero.
            rmm_linear(version, weight, bias, config=config, seed=SEED).sum().backward()
            gradients.append(weight.grad)
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


def test_no_rows():
    _, weight, bias, _ = problem(torch.float32)
    out = rmm_linear(torch.randn(0, 6), weight, bias, config=RMMConfig())
    out.sum().backward()
    assert out.shape == (0, 4) and torch.equal(weight.grad, torch.zeros(4, 6))


def test_retain_graph_gives_the_same_gradient_twice():
    x, weight, bias, grad_output = problem()
    out = rmm_linear(x, weight, bias, config=RMMConfig())
    out.backward(grad_output, retain_graph=True)
    first = weight.grad.clone()
    weight.grad = None
    out.backward(grad_output)
    assert torch.equal(weight.grad, first)


def test_double_backward_raises():
    x, weight, bias, _ = problem()
    out = rmm_linear(x, weight, bias, config=RMMConfig())
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(out.square().sum(), x, create_graph=True)


def test_x_may_change_in_place_and_the_weight_may_not():
    x, weight, bias, grad_output = problem()
    x = x.detach()
    config = RMMConfig(rate=0.3)
    out = rmm_linear(x, weight, bias, config=config, seed=SEED)
    expected = dense_weight_grad(x, grad_output, config)
    x.zero_()
    out.backward(grad_output)
    torch.testing.assert_close(weight.grad, expected, rtol=1e-5, atol=1e-5)

    x.requires_grad_()
    out = rmm_linear(x, weight, bias, config=config)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@FAMILY
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_inf_and_nan_reach_the_weight_gradient(family, center, bad):
    config = RMMConfig(rate=0.1, sketch=family, center=center)
    for spoil_x in (True, False):
        x, weight, _, grad_output = problem(torch.float32)
        x, grad_output = x.detach(), grad_output.detach()
        (x if spoil_x else grad_output)[37, 2] = bad
        rmm_linear(x, weight, config=config, seed=SEED, row_norms=norms_for(family, 60)).backward(grad_output)
        spoiled = weight.grad[:, 2] if spoil_x else weight.grad[2]
        assert not torch.isfinite(spoiled).any()


@FAMILY
def test_finite_input_has_a_finite_gradient(family):
    x, weight, _, grad_output = problem(torch.float32)
    rmm_linear(1e30 * x.detach(), weight, config=RMMConfig(sketch=family, center=False)).backward(1e-30 * grad_output)
    assert torch.isfinite(weight.grad).all()


@FAMILY
def test_autocast_keeps_the_sketch_in_the_low_type(family):
    x, weight, bias, _ = problem(torch.float32)
    config = RMMConfig(rate=0.5, sketch=family)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, storages = saved(lambda: rmm_linear(x, weight, bias, config=config, seed=SEED))
        expected = F.linear(x, weight, bias)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)
    low_weight = weight.numel() * 2
    assert sum(n for _, n in storages.values()) == config.saved_bytes(60, 6, torch.bfloat16) + low_weight
    out.float().square().sum().backward()
    assert weight.grad.dtype == x.grad.dtype == bias.grad.dtype == torch.float32


def test_backward_inside_autocast_sums_in_float32():
    """Rows of one sign whose bfloat16 sum would stall at 256."""
    x, weight = torch.ones(4096, 2), torch.zeros(1, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rmm_linear(x, weight, config=RMMConfig(rate=0.5)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((1, 2), 4096.0), rtol=1e-2, atol=0)


def test_without_grad_mode_nothing_is_kept_but_the_generator_moves():
    """Reentrant checkpointing runs its first pass without grad; a draw there is what makes S change between steps."""
    x, weight, bias, _ = problem()
    state = torch.get_rng_state()
    with torch.no_grad():
        rmm_linear(x, weight, bias, config=RMMConfig())
    assert not torch.equal(torch.get_rng_state(), state)
    weight.requires_grad_(False)
    state = torch.get_rng_state()
    rmm_linear(x, weight, bias, config=RMMConfig())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"x": torch.ones(3, 6, dtype=torch.int64)}, TypeError, "'x' must be of type float32"),
        ({"x": [1.0]}, TypeError, "'x' must be a tensor"),
        ({"x": torch.ones(3, 6).to_sparse()}, TypeError, "'x' must be a dense tensor"),
        ({"x": torch.ones(3, 5)}, ValueError, "'x' must have 6 features"),
        ({"x": torch.tensor(1.0)}, ValueError, "'x' must have at least one dimension"),
        ({"x": torch.ones(3, 6, dtype=torch.float64)}, TypeError, "'weight' must have the type of 'x'"),
        ({"weight": torch.ones(6)}, ValueError, r"'weight' must have shape \[M, N\]"),
        ({"bias": torch.ones(3)}, ValueError, r"'bias' must have shape \[4\]"),
        ({"bias": torch.ones(4, device="meta")}, ValueError, "'bias' must be on the device of 'x'"),
        ({"config": 0.1}, TypeError, "'config' must be an RMMConfig"),
        ({"seed": 1.5}, TypeError, "'seed' must be an int or an int64 scalar tensor"),
        ({"seed": 2**63}, ValueError, "'seed' must fit in 64 bits"),
        ({"seed": torch.tensor(1.0)}, TypeError, "'seed' must be an int64 scalar tensor"),
        (
            {"seed": torch.empty((), dtype=torch.int64, device="meta")},
            ValueError,
            "'seed' must be on the device of 'x'",
        ),
    ],
)
def test_errors(arguments, error, match):
    call = {"x": torch.ones(3, 6), "weight": torch.ones(4, 6), "bias": torch.ones(4), "config": RMMConfig(), "seed": 0}
    call |= arguments
    with pytest.raises(error, match=match):
        rmm_linear(call.pop("x"), call.pop("weight"), call.pop("bias"), **call)
