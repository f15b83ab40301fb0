"""Batch normalisation: torch's output and statistics exactly, the gradient exact but for the codec's noise.

With a codec the gradient of gamma is unbiased.  That of x is off by -gamma g v / (sigma M) on average: DRAWS seeds of
COPIES copies of every channel show it within 5 sigma at a small M, where leaving it out would show.
"""

from functools import partial
from itertools import product
from math import ceil, inf, nan, prod

import pytest
import torch
import torch.nn.functional as F

from rmm_gnn import functional as lean
from rmm_gnn.codecs import get_codec
from tests.nn.recording import assert_unbiased, kept_storages, one_thread, saved_tensors

SHAPES = [(6, 4), (2, 1), (63, 1), (7, 129), (6, 4, 5), (1, 4, 3), (5, 3, 2, 4), (3, 2, 2, 3, 2)]
SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=str)
DTYPES = {  # of x, of the parameters and statistics
    "fp32": (torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "bf16 beside fp32": (torch.bfloat16, torch.float32),
    "fp16 beside fp32": (torch.float16, torch.float32),
}
DTYPE = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
MODES = pytest.mark.parametrize("training", [True, False], ids=["training", "frozen statistics"])
DRAWS, COPIES = 200, 100
identical = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def problem(shape, dtypes=(torch.float64, torch.float64)):
    """x, running mean and variance, gamma, beta, and the gradient of the output."""
    generator = torch.Generator().manual_seed(len(shape) * 100 + prod(shape))
    x, grad_output = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtypes[0]) for _ in range(2))
    grad_output = (grad_output.double() + x.double()).to(dtypes[0])  # the gradient of gamma is not all noise
    rest = [torch.rand(shape[1], generator=generator, dtype=torch.float64).add(0.5).to(dtypes[1]) for _ in range(4)]
    return [2 * x + 1, *rest, grad_output]


def run(function, tensors, training=True, needs=(True, True, True), momentum=0.1, layout=lambda x: x, **kwargs):
    """Output, running statistics, and the gradients of x, gamma and beta (None where not needed)."""
    x, mean, var, weight, bias, grad_output = (tensor.clone() for tensor in tensors)
    leaves = [leaf.requires_grad_(needed) for leaf, needed in zip((x, weight, bias), needs, strict=True)]
    out = function(layout(x), mean, var, weight, bias, training, momentum, 1e-3, **kwargs)
    if any(needs):
        out.backward(grad_output.to(out.dtype))
    return (out.detach(), mean, var), [leaf.grad for leaf in leaves]


@SHAPE
@DTYPE
@MODES
@pytest.mark.parametrize("codec", ["fp32", "int2"])
def test_output_and_statistics_are_those_of_torch(shape, dtypes, training, codec):
    tensors = problem(shape, dtypes)
    identical(run(lean.batch_norm, tensors, training, codec=codec)[0], run(F.batch_norm, tensors, training)[0])


@SHAPE
@MODES
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gradients_are_those_of_torch_where_nothing_is_rounded(shape, training, dtype, tolerance):
    tensors = problem(shape, (dtype, dtype))
    ours, theirs = (run(f, tensors, training)[1] for f in (partial(lean.batch_norm, codec="fp32"), F.batch_norm))
    for mine, exact in zip(ours, theirs, strict=True):
        # At M = 2 the gradient of x is nothing but what cancellation leaves.
        assert (mine - exact).norm() <= tolerance * max(exact.norm(), 0.1 * tensors[-1].norm())


@DTYPE
@MODES
def test_gradients_in_low_precision(dtypes, training):
    """As close to the truth as torch's own, or within two roundings of the type."""
    tensors = problem((40, 6), dtypes)
    exact = run(F.batch_norm, [tensor.double() for tensor in tensors], training)[1]
    ours = run(lean.batch_norm, tensors, training, codec="fp32")[1]
    for mine, truth, kind in zip(ours, exact, (dtypes[0], dtypes[1], dtypes[1]), strict=True):
        assert mine.dtype == kind
        assert (mine.double() - truth).norm() <= 4 * torch.finfo(dtypes[0]).eps * truth.norm()


@MODES
@pytest.mark.parametrize("needs", [n for n in product([True, False], repeat=3) if any(n)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_only_what_is_needed(training, needs, affine):
    def call(function, **kwargs):
        x, mean, var, weight, bias, grad_output = problem((9, 4, 3))
        x.requires_grad_(needs[0])
        leaves = [
            leaf.requires_grad_(needed) if affine else None
            for leaf, needed in zip((weight, bias), needs[1:], strict=True)
        ]
        out = function(x, mean, var, *leaves, training, **kwargs)
        if out.requires_grad:
            out.backward(grad_output)
        return [out.detach(), mean, var], [leaf.grad for leaf in (x, *leaves) if leaf is not None]

    (ours, mine), (theirs, exact) = call(lean.batch_norm, codec="fp32"), call(F.batch_norm)
    identical(ours, theirs)
    for gradient, expected in zip(mine, exact, strict=True):
        assert (gradient is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("only", [0, 1])
def test_one_of_gamma_and_beta(only):
    def call(function, **kwargs):
        x, _, _, weight, bias, grad_output = problem((9, 4))
        given = [leaf.requires_grad_() if place == only else None for place, leaf in enumerate((weight, bias))]
        out = function(x.requires_grad_(), None, None, *given, True, **kwargs)
        out.backward(grad_output)
        return out.detach(), x.grad, given[only].grad

    torch.testing.assert_close(call(lean.batch_norm, codec="fp32"), call(F.batch_norm))


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((9, 4), lambda x: x.t().contiguous().t()),
        ((9, 8), lambda x: x.repeat_interleave(2, 1)[:, ::2]),
        ((5, 4, 3, 2), lambda x: x.contiguous(memory_format=torch.channels_last)),
        ((5, 4, 6), lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
    ],
)
@MODES
def test_layouts(shape, layout, training):
    tensors = problem(shape, (torch.float32, torch.float32))
    functions = partial(lean.batch_norm, codec="fp32"), F.batch_norm
    (ours, mine), (theirs, exact) = (run(function, tensors, training, layout=layout) for function in functions)
    identical(ours, theirs)
    torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-5)
    grads = [run(lean.batch_norm, tensors, training, layout=how, seed=3)[1] for how in (layout, lambda x: x)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@MODES
def test_more_rows_than_are_handled_at_a_time(training):
    tensors = problem((700, 600), (torch.float32, torch.float32))
    (ours, mine), (theirs, exact) = (
        run(function, tensors, training) for function in (partial(lean.batch_norm, codec="fp32"), F.batch_norm)
    )
    identical(ours, theirs)
    torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-4)
    for gradient, expected in zip(run(lean.batch_norm, tensors, training, codec="int8")[1], exact, strict=True):
        assert (gradient - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.37, 1.0])
def test_consecutive_steps(momentum):
    """Running statistics move as torch's do and belong to no graph: a second backward would fail on the first's."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ((torch.zeros(4), torch.ones(4)) for _ in range(2))
    weight = torch.ones(4, requires_grad=True)
    for _ in range(4):
        x = torch.randn(9, 4, generator=generator).requires_grad_()
        out = lean.batch_norm(x, *ours, weight, None, True, momentum)
        expected = F.batch_norm(x.detach(), *theirs, weight.detach(), None, True, momentum)
        identical((out.detach(), *ours), (expected, *theirs))
        assert not any(buffer.requires_grad for buffer in ours)
        out.square().sum().backward()


@SHAPE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("codec", ["int1", "int2", "int4:group_size=3", "bf16", "fp32"])
def test_kept_bytes(shape, dtype, codec):
    """The code of [N, C L], a row a sample, and 1/sigma of every channel; the parameters are kept as they are."""
    x, mean, var, weight, bias, _ = problem(shape, (dtype, torch.float32 if dtype != torch.float64 else dtype))
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    with saved_tensors() as saved:
        lean.batch_norm(x, mean, var, weight, bias, True, codec=codec)
    size = sum(kept_storages(saved, besides=leaves).values())
    columns, statistics = prod(shape[1:]), shape[1] * (8 if dtype == torch.float64 else 4)
    assert size == get_codec(codec).num_bytes(shape[0], columns, dtype) + statistics
    if codec == "int2":
        assert size == shape[0] * (ceil(columns / 4) + 4) + statistics


@pytest.mark.parametrize(
    ("needs", "code", "weight_too"),
    [((True, False, False), True, True), ((False, True, False), True, False), ((False, False, True), False, False)],
)
def test_kept_bytes_where_less_is_needed(needs, code, weight_too):
    x, mean, var, weight, bias, _ = problem((9, 6), (torch.float32, torch.float32))
    for leaf, needed in zip((x, weight, bias), needs, strict=True):
        leaf.requires_grad_(needed)
    with saved_tensors() as saved:
        lean.batch_norm(x, mean, var, weight, bias, True)
    size = sum(kept_storages(saved, besides=[weight]).values())
    assert size == 6 * 4 + (9 * (ceil(6 / 4) + 4) if code else 0)
    assert any(tensor.data_ptr() == weight.data_ptr() for tensor in saved) == weight_too


def test_frozen_statistics_are_torchs_own():
    """Values, gradients and what is kept; nothing is drawn."""
    tensors = problem((9, 4))
    state = torch.get_rng_state()
    ours, theirs = (run(f, tensors, False) for f in (partial(lean.batch_norm, codec="int1"), F.batch_norm))
    identical(ours, theirs)
    kept = []
    for function in (lean.batch_norm, F.batch_norm):
        leaves = [tensor.clone().requires_grad_() for tensor in (tensors[0], *tensors[3:5])]
        with saved_tensors() as saved:
            function(leaves[0], *tensors[1:3], *leaves[1:], False)
        kept.append([(tensor.shape, tensor.dtype) for tensor in saved])
    assert kept[0] == kept[1] and torch.equal(torch.get_rng_state(), state)


@MODES
def test_without_a_gradient_it_is_torchs(training):
    tensors = problem((9, 4))
    with saved_tensors() as saved:
        ours = run(lean.batch_norm, tensors, training, needs=(False,) * 3)[0]
        x, mean, var, weight, bias, _ = (tensor.clone() for tensor in tensors)
        with torch.no_grad():
            out = lean.batch_norm(x.requires_grad_(), mean, var, weight, bias, training, 0.1, 1e-3)
    assert saved == []
    identical(ours, run(F.batch_norm, tensors, training, needs=(False,) * 3)[0])
    identical((out, mean, var), ours)


@pytest.mark.parametrize("shape", [(240, 7), (60, 4, 4)], ids=str)
@pytest.mark.parametrize("codec", ["int1", "int2", "int8"])
def test_gradient_of_gamma_is_unbiased(shape, codec):
    tensors = problem(shape)
    _, exact, beta = run(F.batch_norm, tensors)[1]
    assert_unbiased(lambda: run(lean.batch_norm, tensors, codec=codec)[1][1], exact, draws=200)
    torch.testing.assert_close(run(lean.batch_norm, tensors, codec=codec)[1][2], beta)


def normalized_input(x):
    """The normalised input, 1/sigma broadcast to it, and M."""
    dims = (0, *range(2, x.dim()))
    scale = (x.var(dims, unbiased=False, keepdim=True) + 1e-3).rsqrt()
    return (x - x.mean(dims, keepdim=True)) * scale, scale, x.numel() // x.shape[1]


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 3), (3, 6)], ids=str)
@pytest.mark.parametrize("codec", ["int1", "int2", "int2:group_size=6,scale=fp32"])
def test_bias_of_the_gradient_of_x_is_the_closed_form(shape, codec):
    tensors = [t.repeat(1, COPIES, *(1,) * (t.dim() - 2)) if t.dim() > 1 else t.repeat(COPIES) for t in problem(shape)]
    x, weight, grad_output = tensors[0], tensors[3], tensors[5]
    normalized, inv_std, count = normalized_input(x)
    gamma = weight.view(-1, *(1,) * (x.dim() - 2))
    variance = get_codec(codec).variance(normalized.flatten(1)).view(x.shape)
    bias = -gamma * grad_output * variance * inv_std / count
    exact = run(F.batch_norm, tensors)[1][0]

    with one_thread():
        samples = torch.stack([run(lean.batch_norm, tensors, codec=codec)[1][0] for _ in range(DRAWS)])
    errors = (samples - exact).view(DRAWS, shape[0], COPIES, -1).mean(2).flatten(1)
    expected = bias.view(shape[0], COPIES, -1).mean(1).flatten()
    sigma = errors.std(0) / DRAWS**0.5
    assert ((errors.mean(0) - expected).abs() < 5 * sigma + 1e-12).all()
    along = errors @ expected
    assert (along.mean() - expected @ expected).abs() < 5 * along.std() / DRAWS**0.5
    assert expected @ expected > 10 * along.std() / DRAWS**0.5, "too few draws to see the bias"

    scales = get_codec(codec).encode_matrix(normalized.flatten(1), torch.tensor(0))[1].double()
    columns = variance[0].numel()
    step = scales[:, scales.shape[1] // 2 :].repeat_interleave(get_codec(codec).group_size or columns, 1)[:, :columns]
    bound = (gamma * grad_output * inv_std).abs() * step.view(x.shape).square() / (4 * count)
    assert (bias.abs() <= bound * (1 + 1e-9)).all()
    assert (errors.mean(0).abs() <= bound.view(shape[0], COPIES, -1).mean(1).flatten() + 5 * sigma).all()


def test_seeds_and_draws():
    tensors = problem((9, 4))
    gradients = [run(lean.batch_norm, tensors, seed=seed)[1][1] for seed in (3, torch.tensor(3), 4)]
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([run(lean.batch_norm, tensors)[1][1] for _ in range(3)])
    identical(*runs)
    assert len({tuple(gradient.tolist()) for gradient in runs[0]}) == 3


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("codec", "drawn"), [("int2", True), ("fp32", False), ("bf16", False)])
def test_a_training_call_draws_where_there_is_rounding(enabled, codec, drawn):
    tensors = problem((9, 4))
    state = torch.get_rng_state()
    with torch.set_grad_enabled(enabled):
        lean.batch_norm(tensors[0].requires_grad_(), None, None, training=True, codec=codec)
    assert torch.equal(torch.get_rng_state(), state) != drawn


@pytest.mark.parametrize("bad", [inf, -inf, nan])
@pytest.mark.parametrize("codec", ["fp32", "int2"])
@MODES
def test_inf_and_nan_are_not_hidden(bad, codec, training):
    """What is not finite with torch is not finite here; a code may lose the rest of its row besides."""
    for spoiled in (0, 5):
        tensors = problem((9, 4))
        tensors[spoiled][3, 2] = bad
        ours, theirs = (run(f, tensors, training) for f in (partial(lean.batch_norm, codec=codec), F.batch_norm))
        identical(ours[0], theirs[0])
        for mine, exact in zip(ours[1], theirs[1], strict=True):
            assert not mine[~exact.isfinite()].isfinite().any()
            if codec == "fp32":
                assert torch.equal(mine.isfinite(), exact.isfinite())


def test_input_may_change_in_place_afterwards_and_gamma_may_not():
    tensors = problem((9, 4))
    expected = run(lean.batch_norm, tensors, codec="fp32")[1]
    x, _, _, weight, bias, grad_output = tensors
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    out = lean.batch_norm(x, None, None, weight, bias, True, eps=1e-3, codec="fp32")
    with torch.no_grad():
        x.zero_()
        out.zero_()
    identical(list(torch.autograd.grad(out, leaves, grad_output, retain_graph=True)), expected)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_retain_graph_gives_the_same_gradient_twice():
    x, _, _, weight, _, grad_output = problem((9, 4))
    leaves = x.requires_grad_(), weight.requires_grad_()
    out = lean.batch_norm(x, None, None, weight, training=True)
    first, second = (torch.autograd.grad(out, leaves, grad_output, retain_graph=True) for _ in range(2))
    identical(first, second)


@pytest.mark.parametrize("grad", [lambda x: x[:1].expand(9, 4), lambda x: x.t().contiguous().t(), lambda x: 0 * x])
def test_a_gradient_in_another_layout(grad):
    tensors = problem((9, 4))
    x, weight = tensors[0].requires_grad_(), tensors[3].requires_grad_()
    grad_output, results = grad(tensors[5]), []
    for arrange in (lambda g: g, torch.Tensor.contiguous):
        out = lean.batch_norm(x, None, None, weight, training=True, seed=3)
        results.append(torch.autograd.grad(out, (x, weight), arrange(grad_output)))
    torch.testing.assert_close(*results)


def test_double_backward_raises():
    x = torch.randn(9, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(lean.batch_norm(x, None, None, training=True).pow(3).sum(), x, create_graph=True)


STATISTICS = torch.zeros(4), torch.ones(4)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f(x(0, 4), *STATISTICS, x(4), x(4), True),
        lambda f, x: f(x(0, 4), *STATISTICS, x(4), x(4), False),
        lambda f, x: f(x(0, 4), *STATISTICS, None, None, False),
        lambda f, x: f(x(9, 0), None, None, None, None, True),
        lambda f, x: f(x(4, 4, 0), *STATISTICS, x(4), x(4), False),
    ],
    ids=["training", "evaluation", "no affine", "no channels", "no positions"],
)
def test_nothing_to_normalize(call):
    def leaf(*shape):
        return torch.ones(shape, requires_grad=True)

    ours, theirs = call(lean.batch_norm, leaf), call(F.batch_norm, leaf)
    identical(ours.detach(), theirs.detach())
    ours.sum().backward()


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f(x(1, 4), *STATISTICS, training=True),
        lambda f, x: f(x(1, 4, 1), *STATISTICS, training=True),
        lambda f, x: f(x(9), None, None, training=True),
        lambda f, x: f(x(9, 4), None, None, training=False),
        lambda f, x: f(x(9, 4), torch.zeros(4), None, training=True),
        lambda f, x: f(x(9, 4), None, torch.ones(4), training=True),
        lambda f, x: f(x(9, 4), torch.zeros(4), None, training=False),
        *(
            lambda f, x, size=size, place=place, training=training: f(
                x(9, 4),
                *(torch.ones(size if place == number else 4) for number in range(2)),
                *(x(size if place == number else 4) for number in range(2, 4)),
                training,
            )
            for size in (3, 5)
            for place in range(4)
            for training in (True, False)
        ),
    ],
)
def test_what_torch_refuses(call):
    """The same error with a gradient as without: sizes that do not fit would be read out of bounds."""

    def leaf(*shape):
        return torch.ones(shape, requires_grad=True)

    with pytest.raises((ValueError, RuntimeError, IndexError)) as theirs:
        call(F.batch_norm, leaf)
    with pytest.raises(theirs.type) as ours:
        call(lean.batch_norm, leaf)
    assert str(ours.value) == str(theirs.value)


def test_errors():
    x = torch.ones(9, 4, requires_grad=True)
    with pytest.raises(ValueError, match="'codec' must be a known name"):
        lean.batch_norm(x, None, None, training=True, codec="int3")
    with pytest.raises(TypeError, match="'seed' must be an int or an int64 scalar tensor"):
        lean.batch_norm(x, None, None, training=True, seed=1.5)
    with pytest.raises(TypeError, match="'x' must be of type float32"):
        lean.batch_norm(torch.ones(9, 4, dtype=torch.complex64, requires_grad=True), None, None, training=True)
