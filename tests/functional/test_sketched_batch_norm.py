"""Batch normalisation that keeps a sketch of its rows: the formula with S S^T x in the place of x, and its bias.

Where nothing is rounded, one call must equal the formula with the dense S of its seed.  Over seeds the gradient of
gamma is unbiased and that of x is off by a closed form: DRAWS seeds show it within 5 sigma, and each of its terms.
"""

from functools import partial
from math import ceil, inf, nan, prod

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from rmm_gnn import functional as lean
from rmm_gnn.autograd.sketched_norm import kept_rows
from rmm_gnn.codecs import get_codec
from rmm_gnn.sketches import CountSketch
from rmm_gnn.sketches.blocks import pair_share
from tests.functional.test_batch_norm import DTYPE, identical, normalized_input, problem, run
from tests.nn.recording import assert_unbiased, kept_storages, one_thread, saved_tensors

SHAPES = [(7, 4), (63, 1), (7, 129), (6, 4, 5), (5, 3, 2, 4), (2, 3), (300, 2000)]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
RATE = pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
DRAWS, ROUNDINGS = 1000, 300


def dense_sketch(num_rows, rate, seed):
    return CountSketch().to_dense(num_rows, kept_rows(rate, num_rows), torch.tensor(seed), dtype=torch.float64)


def gradients_from(estimate, tensors):
    """Gradients of x and gamma with ``estimate`` in the place of the normalised input."""
    x, weight, grad_output = tensors[0], tensors[3], tensors[5]
    _, inv_std, count = normalized_input(x)
    dims = (0, *range(2, x.dim()))
    products = (grad_output * estimate).sum(dims, keepdim=True)
    gamma = weight.view(-1, *(1,) * (x.dim() - 2))
    grad_x = gamma * inv_std * (grad_output - grad_output.mean(dims, keepdim=True) - estimate * products / count)
    return grad_x, products.flatten()


@SHAPE
@RATE
def test_one_call_equals_the_formula_with_the_dense_sketch(shape, rate):
    tensors = problem(shape)
    (out, *statistics), (grad_x, grad_gamma, grad_beta) = run(
        lean.batch_norm, tensors, codec="fp32", rate=rate, seed=11
    )
    (expected, *moments), (_, _, beta) = run(F.batch_norm, tensors)
    identical([out, *statistics], [expected, *moments])
    torch.testing.assert_close(grad_beta, beta)

    s = dense_sketch(shape[0], rate, 11)
    estimate = (s @ (s.T @ normalized_input(tensors[0])[0].flatten(1))).view(shape)
    by_x, by_gamma = gradients_from(estimate, tensors)
    torch.testing.assert_close(grad_x, by_x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad_gamma, by_gamma, rtol=1e-9, atol=1e-9)


@DTYPE
def test_low_precision_and_mixed_types(dtypes):
    tensors = problem((40, 6), dtypes)
    exact = run(lean.batch_norm, [tensor.double() for tensor in tensors], codec="fp32", rate=0.3, seed=5)[1]
    ours = run(lean.batch_norm, tensors, codec="fp32", rate=0.3, seed=5)[1]
    for mine, truth, kind in zip(ours, exact, (dtypes[0], dtypes[1], dtypes[1]), strict=True):
        assert mine.dtype == kind
        # In float16 and bfloat16 the sketch is stored in this type as well.
        assert (mine.double() - truth).norm() <= 8 * torch.finfo(dtypes[0]).eps * truth.norm()


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((9, 4), lambda x: x.t().contiguous().t()),
        ((9, 8), lambda x: x.repeat_interleave(2, 1)[:, ::2]),
        ((5, 4, 3, 2), lambda x: x.contiguous(memory_format=torch.channels_last)),
        ((5, 4, 6), lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
    ],
)
def test_layouts(shape, layout):
    tensors = problem(shape)
    call = partial(run, lean.batch_norm, tensors, rate=0.5, seed=3)
    torch.testing.assert_close(call(layout=layout), call())


@pytest.mark.parametrize("arrange", [lambda x: x[:1].expand(9, 4, 3), lambda x: x.mT.contiguous().mT])
def test_a_gradient_in_another_layout(arrange):
    tensors, results = problem((9, 4, 3)), []
    for layout in (lambda g: g, torch.Tensor.contiguous):
        tensors[0].requires_grad_()
        out = lean.batch_norm(tensors[0], None, None, training=True, seed=3, rate=0.4)
        results.append(torch.autograd.grad(out, tensors[0], layout(arrange(tensors[5]))))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("codec", ["int2", "bf16"])
@pytest.mark.parametrize("rate", [1.0, 0.9])
def test_all_rows_are_kept_as_they_are(codec, rate):
    """k = N, asked for or rounded to: no S, the numbers and the code of today."""
    tensors = problem((3, 4, 5))
    identical(*(run(lean.batch_norm, tensors, codec=codec, seed=3, **given) for given in ({}, {"rate": rate})))


@pytest.mark.parametrize("shape", [(7, 4), (63, 1), (40, 129), (6, 4, 5), (1, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("codec", ["int1", "int2", "int4:group_size=3", "bf16", "fp32"])
@pytest.mark.parametrize("rate", [0.01, 0.25, 0.9])
def test_kept_bytes(shape, dtype, codec, rate):
    """k rows of the code, 1/sigma of every channel, and the seed."""
    x, mean, var, weight, bias, _ = problem(shape, (dtype, torch.float32 if dtype != torch.float64 else dtype))
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    with saved_tensors() as saved:
        lean.batch_norm(x, mean, var, weight, bias, True, codec=codec, rate=rate)
    size = sum(kept_storages(saved, besides=leaves).values())
    k, columns = min(max(1, round(rate * shape[0])), shape[0]), prod(shape[1:])
    statistics = shape[1] * (8 if dtype == torch.float64 else 4)
    assert size == get_codec(codec).num_bytes(k, columns, dtype) + statistics + 8
    if codec == "int2":
        assert size == k * (ceil(columns / 4) + 4) + statistics + 8


def test_kept_bytes_where_less_is_needed():
    for needs, kept in (((False, True, False), 3 * (2 + 4) + 8), ((False, False, True), 0)):
        x, mean, var, weight, bias, _ = problem((9, 6), (torch.float32, torch.float32))
        for leaf, needed in zip((x, weight, bias), needs, strict=True):
            leaf.requires_grad_(needed)
        with saved_tensors() as saved:
            lean.batch_norm(x, mean, var, weight, bias, True, rate=0.3)
        assert sum(kept_storages(saved, besides=[weight]).values()) == 6 * 4 + kept


@pytest.mark.parametrize("shape", [(240, 7), (120, 4, 4)], ids=str)
@pytest.mark.parametrize("codec", ["int2", "fp32"])
def test_gradient_of_gamma_is_unbiased(shape, codec):
    tensors = problem(shape)
    exact = run(F.batch_norm, tensors)[1][1]
    assert_unbiased(lambda: run(lean.batch_norm, tensors, codec=codec, rate=0.5)[1][1], exact, draws=200)


def bias_terms(tensors, rate):
    """The three terms of the closed form, channel by channel as matrices [N, L]."""
    x, weight, grad_output = tensors[0], tensors[3], tensors[5]
    normalized, inv_std, count = normalized_input(x)
    share = pair_share(x.shape[0], kept_rows(rate, x.shape[0]))
    x_j, g_j = (tensor.flatten(2).transpose(0, 1) if tensor.dim() > 2 else tensor.t().unsqueeze(2)
                for tensor in (normalized, grad_output))  # fmt: skip
    terms = (
        g_j @ (x_j.mT @ x_j),
        x_j @ (g_j.mT @ x_j),
        -2 * (g_j * x_j).sum(2, keepdim=True) * x_j,
    )
    factor = -weight.view(-1, *(1,) * (x.dim() - 2)) * inv_std * share / count
    return [factor * term.transpose(0, 1).reshape(x.shape) for term in terms]


@pytest.mark.parametrize(("shape", "rate"), [((7, 5), 0.4), ((4, 5), 0.3), ((5, 3, 3), 0.5)], ids=str)
def test_bias_of_the_gradient_of_x_is_the_closed_form(shape, rate):
    """Buckets of 2, 2, 3; of 4; and of 2, 3 with three positions a row."""
    tensors = problem(shape)
    exact, terms = run(F.batch_norm, tensors)[1][0], bias_terms(tensors, rate)
    expected = sum(terms).flatten()
    with one_thread():
        samples = [run(lean.batch_norm, tensors, codec="fp32", rate=rate, seed=s)[1][0] for s in range(DRAWS)]
    errors = (torch.stack(samples) - exact).flatten(1)
    sigma = errors.std(0) / DRAWS**0.5
    assert ((errors.mean(0) - expected).abs() < 5 * sigma + 1e-9).all()
    for term in terms:  # a formula that lacked it, or the whole, would have been rejected
        wrong = expected - term.flatten()
        assert ((errors.mean(0) - wrong).abs() > 5 * sigma).any(), "too few draws to see a term"
    along = errors @ expected
    assert (along.mean() - expected @ expected).abs() < 5 * along.std() / DRAWS**0.5
    assert expected @ expected > 10 * along.std() / DRAWS**0.5, "too few draws to see the bias"


@pytest.mark.parametrize("codec", ["int1", "int2"])
def test_rounding_of_the_sketch_adds_its_own_bias(codec):
    """Given S the mean over roundings is known; what is left of every draw has mean zero."""
    tensors = problem((6, 160))
    x, weight, grad_output = tensors[0], tensors[3], tensors[5]
    normalized, inv_std, count = normalized_input(x)
    errors, extra = [], []
    with one_thread():
        for seed in range(ROUNDINGS):
            s = dense_sketch(6, 0.5, seed)
            x_sketch = s.T @ normalized
            rounding = s @ ((s.T @ grad_output) * get_codec(codec).variance(x_sketch))
            extra.append(-weight * inv_std * rounding / count)
            mean = gradients_from(s @ x_sketch, tensors)[0] + extra[-1]
            errors.append(run(lean.batch_norm, tensors, codec=codec, rate=0.5, seed=seed)[1][0] - mean)
    errors, extra = torch.stack(errors).flatten(1), torch.stack(extra).flatten(1)
    assert (errors.mean(0).abs() < 5 * errors.std(0) / ROUNDINGS**0.5 + 1e-12).all()
    direction = extra.mean(0)
    along = errors @ direction
    sigma = along.std() / ROUNDINGS**0.5
    assert along.mean().abs() < 5 * sigma
    assert direction @ direction > 10 * sigma, "too few draws to see the bias"


def test_variance_of_what_is_read_back():
    """p times the rest of the column's squares, which is about N/k - 1."""
    normalized = normalized_input(problem((40, 3))[0])[0]
    errors = []
    for seed in range(ROUNDINGS):
        s = dense_sketch(40, 0.25, seed)
        errors.append((s @ (s.T @ normalized) - normalized).square().sum(0))
    errors = torch.stack(errors)
    expected = pair_share(40, 10) * 39 * normalized.square().sum(0)
    assert expected / 40 == pytest.approx(torch.full((3,), 40 / 10 - 1), rel=0.01)
    sigma = errors.std(0) / ROUNDINGS**0.5
    assert ((errors.mean(0) - expected).abs() < 5 * sigma).all() and (0.15 * expected > 5 * sigma).all()


def test_seeds_and_draws():
    tensors = problem((20, 4))
    gradients = [run(lean.batch_norm, tensors, rate=0.3, seed=seed)[1][1] for seed in (3, torch.tensor(3), 4)]
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([run(lean.batch_norm, tensors, rate=0.3, codec="fp32")[1][1] for _ in range(3)])
    identical(*runs)
    assert len({tuple(gradient.tolist()) for gradient in runs[0]}) == 3


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("codec", "rate", "drawn"), [("fp32", 0.5, True), ("int2", 0.5, True), ("fp32", 1.0, False)])
def test_a_training_call_draws_where_there_is_a_sketch(enabled, codec, rate, drawn):
    x = problem((9, 4))[0].requires_grad_()
    state = torch.get_rng_state()
    with torch.set_grad_enabled(enabled):
        lean.batch_norm(x, None, None, training=True, codec=codec, rate=rate)
    assert torch.equal(torch.get_rng_state(), state) != drawn


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_draws_the_same_sketch(reentrant):
    tensors, results = problem((30, 4)), []

    def block(x):
        return lean.batch_norm(x, None, None, training=True, rate=0.3).square()

    for wrapped in (block, lambda x: checkpoint(block, x, use_reentrant=reentrant)):
        torch.manual_seed(3)
        x = tensors[0].clone().requires_grad_()
        for _ in range(2):
            wrapped(x).backward(tensors[5])
        results.append(x.grad)
    identical(*results)


def test_frozen_statistics_are_torchs_own():
    tensors = problem((9, 4))
    state = torch.get_rng_state()
    identical(run(lean.batch_norm, tensors, False, rate=0.3), run(F.batch_norm, tensors, False))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("bad", [inf, -inf, nan])
@pytest.mark.parametrize("codec", ["fp32", "int2"])
def test_inf_and_nan_are_not_hidden(bad, codec):
    for spoiled in (0, 5):
        tensors = problem((12, 4))
        tensors[spoiled][3, 2] = bad
        theirs = run(F.batch_norm, tensors)
        for seed in range(5):
            ours = run(lean.batch_norm, tensors, codec=codec, rate=0.3, seed=seed)
            identical(ours[0], theirs[0])
            for mine, exact in zip(ours[1], theirs[1], strict=True):
                assert not mine[~exact.isfinite()].isfinite().any()
                if codec == "fp32":
                    assert torch.equal(mine.isfinite(), exact.isfinite())


def test_input_may_change_in_place_afterwards():
    tensors = problem((9, 4))
    expected = run(lean.batch_norm, tensors, rate=0.5, seed=3)[1]
    leaves = [tensors[place].requires_grad_() for place in (0, 3, 4)]
    out = lean.batch_norm(tensors[0], None, None, *leaves[1:], True, eps=1e-3, rate=0.5, seed=3)
    with torch.no_grad():
        tensors[0].zero_()
        out.zero_()
    identical(list(torch.autograd.grad(out, leaves, tensors[5], retain_graph=True)), expected)
    identical(list(torch.autograd.grad(out, leaves, tensors[5])), expected)


def test_double_backward_raises():
    x = torch.randn(9, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        out = lean.batch_norm(x, None, None, training=True, rate=0.5)
        torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("rate", "error", "match"),
    [
        (0.0, ValueError, r"'rate' must lie in \(0, 1\] \(got 0.0\)"),
        (1.5, ValueError, r"'rate' must lie in \(0, 1\] \(got 1.5\)"),
        ("0.5", TypeError, r"'rate' must be a number \(got str\)"),
        (True, TypeError, r"'rate' must be a number \(got bool\)"),
    ],
)
def test_errors(rate, error, match):
    with pytest.raises(error, match=match):
        lean.batch_norm(torch.ones(9, 4, requires_grad=True), None, None, training=True, rate=rate)
