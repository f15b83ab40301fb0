"""Layer normalisation: torch's output exactly, the gradient exact but for the codec's noise.

With a codec the gradient of gamma is unbiased.  That of x is off by -gamma g v / (sigma C) on average: DRAWS seeds of
COPIES copies of every row show it within 5 sigma at a small C, where leaving it out would show.
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

# Shape of x, how many of its dimensions are normalised.
CASES = [((9,), 1), ((6, 4), 1), ((63, 1), 1), ((7, 129), 1), ((5, 3, 4), 1), ((5, 3, 4), 2), ((2, 3, 4), 3)]
CASE = pytest.mark.parametrize("case", CASES, ids=str)
DTYPES = {  # of x, of the parameters
    "fp32": (torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "bf16 beside fp32": (torch.bfloat16, torch.float32),
    "fp16 beside fp32": (torch.float16, torch.float32),
}
DTYPE = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
DRAWS, COPIES = 200, 100
identical = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def problem(case, dtypes=(torch.float64, torch.float64)):
    """x, gamma, beta, and the gradient of the output."""
    shape, dims = case
    generator = torch.Generator().manual_seed(len(shape) * 100 + prod(shape))
    x, grad_output = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    rest = [torch.rand(shape[-dims:], generator=generator, dtype=torch.float64) + 0.5 for _ in range(2)]
    # The gradient of gamma is not all noise.
    return [(2 * x + 1).to(dtypes[0]), *(tensor.to(dtypes[1]) for tensor in rest), (grad_output + x).to(dtypes[0])]


def run(function, tensors, needs=(True, True, True), layout=lambda x: x, **kwargs):
    """Output, and the gradients of x, gamma and beta (None where not needed)."""
    x, weight, bias, grad_output = (tensor.clone() for tensor in tensors)
    leaves = [leaf.requires_grad_(needed) for leaf, needed in zip((x, weight, bias), needs, strict=True)]
    out = function(layout(x), weight.shape, weight, bias, 1e-3, **kwargs)
    if any(needs):
        out.backward(grad_output.to(out.dtype))
    return out.detach(), [leaf.grad for leaf in leaves]


@CASE
@DTYPE
@pytest.mark.parametrize("codec", ["fp32", "int2"])
def test_output_is_that_of_torch(case, dtypes, codec):
    tensors = problem(case, dtypes)
    identical(run(lean.layer_norm, tensors, codec=codec)[0], run(F.layer_norm, tensors)[0])


@CASE
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gradients_are_those_of_torch_where_nothing_is_rounded(case, dtype, tolerance):
    tensors = problem(case, (dtype, dtype))
    ours, theirs = (run(f, tensors)[1] for f in (partial(lean.layer_norm, codec="fp32"), F.layer_norm))
    for mine, exact in zip(ours, theirs, strict=True):
        assert (mine - exact).norm() <= tolerance * max(exact.norm(), tensors[-1].norm())


@DTYPE
def test_gradients_in_low_precision(dtypes):
    tensors = problem(((6, 40), 1), dtypes)
    exact = run(F.layer_norm, [tensor.double() for tensor in tensors])[1]
    ours = run(lean.layer_norm, tensors, codec="fp32")[1]
    for mine, truth, kind in zip(ours, exact, (dtypes[0], dtypes[1], dtypes[1]), strict=True):
        assert mine.dtype == kind
        assert (mine.double() - truth).norm() <= 4 * torch.finfo(dtypes[0]).eps * truth.norm()


@pytest.mark.parametrize("needs", [n for n in product([True, False], repeat=3) if any(n)], ids=str)
@pytest.mark.parametrize("given", ["gamma and beta", "gamma", "beta", "neither"])
def test_only_what_is_needed(needs, given):
    def call(function, **kwargs):
        x, weight, bias, grad_output = problem(((5, 3, 4), 2))
        x.requires_grad_(needs[0])
        parameters = [
            leaf.requires_grad_(needed) if name in given else None
            for name, leaf, needed in zip(("gamma", "beta"), (weight, bias), needs[1:], strict=True)
        ]
        out = function(x, (3, 4), *parameters, **kwargs)
        if out.requires_grad:
            out.backward(grad_output)
        return out.detach(), [leaf.grad for leaf in (x, *parameters) if leaf is not None]

    (ours, mine), (theirs, exact) = call(lean.layer_norm, codec="fp32"), call(F.layer_norm)
    identical(ours, theirs)
    for gradient, expected in zip(mine, exact, strict=True):
        assert (gradient is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ("case", "layout"),
    [
        (((9, 4), 1), lambda x: x.t().contiguous().t()),
        (((9, 8), 1), lambda x: x.repeat_interleave(2, 1)[:, ::2]),
        (((5, 3, 4), 1), lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1)),
        (((5, 4, 3, 2), 2), lambda x: x.contiguous(memory_format=torch.channels_last)),
    ],
)
def test_layouts(case, layout):
    tensors = problem(case, (torch.float32, torch.float32))
    (ours, mine), (theirs, exact) = (
        run(function, tensors, layout=layout) for function in (partial(lean.layer_norm, codec="fp32"), F.layer_norm)
    )
    identical(ours, theirs)
    torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-5)
    grads = [run(lean.layer_norm, tensors, layout=how, seed=3)[1] for how in (layout, lambda x: x)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


def test_more_rows_than_are_handled_at_a_time():
    tensors = problem(((700, 600), 1), (torch.float32, torch.float32))
    (ours, mine), (theirs, exact) = (
        run(function, tensors) for function in (partial(lean.layer_norm, codec="fp32"), F.layer_norm)
    )
    identical(ours, theirs)
    torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-4)
    for gradient, expected in zip(run(lean.layer_norm, tensors, codec="int8")[1], exact, strict=True):
        assert (gradient - expected).norm() < 0.03 * expected.norm()


@CASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("codec", ["int1", "int2", "int4:group_size=3", "bf16", "fp32"])
def test_kept_bytes(case, dtype, codec):
    """The code and 1/sigma of every row; the parameters are kept as they are."""
    x, weight, bias, _ = problem(case, (dtype, torch.float32 if dtype != torch.float64 else dtype))
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    with saved_tensors() as saved:
        lean.layer_norm(x, weight.shape, weight, bias, codec=codec)
    size = sum(kept_storages(saved, besides=leaves).values())
    columns = weight.numel()
    rows, statistics = x.numel() // columns, 8 if dtype == torch.float64 else 4
    assert size == get_codec(codec).num_bytes(rows, columns, dtype) + rows * statistics
    if codec == "int2":
        assert size == rows * (ceil(columns / 4) + 4) + rows * statistics


@pytest.mark.parametrize(
    ("needs", "code", "weight_too"),
    [((True, False, False), True, True), ((False, True, False), True, False), ((False, False, True), False, False)],
)
def test_kept_bytes_where_less_is_needed(needs, code, weight_too):
    x, weight, bias, _ = problem(((9, 6), 1), (torch.float32, torch.float32))
    for leaf, needed in zip((x, weight, bias), needs, strict=True):
        leaf.requires_grad_(needed)
    with saved_tensors() as saved:
        lean.layer_norm(x, (6,), weight, bias)
    size = sum(kept_storages(saved, besides=[weight]).values())
    assert size == 9 * 4 + (9 * (ceil(6 / 4) + 4) if code else 0)
    assert any(tensor.data_ptr() == weight.data_ptr() for tensor in saved) == weight_too


def test_without_a_gradient_it_is_torchs():
    x, weight, bias, _ = problem(((9, 4), 1))
    expected = F.layer_norm(x, (4,), weight, bias)
    with saved_tensors() as saved:
        identical(lean.layer_norm(x, (4,), weight, bias), expected)
        with torch.no_grad():
            identical(lean.layer_norm(x.requires_grad_(), (4,), weight, bias), expected)
    assert saved == []


@pytest.mark.parametrize("case", [((240, 7), 1), ((240, 3, 3), 2)], ids=str)
@pytest.mark.parametrize("codec", ["int1", "int2", "int8"])
def test_gradient_of_gamma_is_unbiased(case, codec):
    tensors = problem(case)
    _, exact, beta = run(F.layer_norm, tensors)[1]
    assert_unbiased(lambda: run(lean.layer_norm, tensors, codec=codec)[1][1], exact, draws=120)
    torch.testing.assert_close(run(lean.layer_norm, tensors, codec=codec)[1][2], beta)


@pytest.mark.parametrize("case", [((5, 4), 1), ((2, 3, 3), 2), ((3, 7), 1)], ids=str)
@pytest.mark.parametrize("codec", ["int1", "int2", "int2:group_size=4,scale=fp32"])
def test_bias_of_the_gradient_of_x_is_the_closed_form(case, codec):
    x, weight, beta, grad_output = problem(case)
    columns = weight.numel()
    x, grad_output = (tensor.repeat(COPIES, *(1,) * (tensor.dim() - 1)) for tensor in (x, grad_output))
    tensors = [x, weight, beta, grad_output]
    rows = x.view(-1, columns)
    inv_std = (rows.var(1, unbiased=False, keepdim=True) + 1e-3).rsqrt()
    normalized = (rows - rows.mean(1, keepdim=True)) * inv_std
    scaled = grad_output.view(-1, columns) * weight.flatten() * inv_std
    bias = -scaled * get_codec(codec).variance(normalized) / columns
    exact = run(F.layer_norm, tensors)[1][0]

    with one_thread():
        samples = torch.stack([run(lean.layer_norm, tensors, codec=codec)[1][0] for _ in range(DRAWS)])
    errors = (samples - exact).view(DRAWS, COPIES, -1).mean(1)
    expected = bias.view(COPIES, -1).mean(0)
    sigma = errors.std(0) / DRAWS**0.5
    assert ((errors.mean(0) - expected).abs() < 5 * sigma + 1e-12).all()
    along = errors @ expected
    assert (along.mean() - expected @ expected).abs() < 5 * along.std() / DRAWS**0.5
    assert expected @ expected > 10 * along.std() / DRAWS**0.5, "too few draws to see the bias"

    scales = get_codec(codec).encode_matrix(normalized, torch.tensor(0))[1].double()
    step = scales[:, scales.shape[1] // 2 :].repeat_interleave(get_codec(codec).group_size or columns, 1)[:, :columns]
    bound = scaled.abs() * step.square() / (4 * columns)
    assert (bias.abs() <= bound * (1 + 1e-9)).all()
    assert (errors.mean(0).abs() <= bound.view(COPIES, -1).mean(0) + 5 * sigma).all()


@pytest.mark.parametrize(("codec", "share"), [("int2", 0.02), ("int4", 1 / 1000)])
def test_the_announced_size_of_the_bias(codec, share):
    """At C = 64 about one part in a hundred of the gradient with INT2, one in two thousand with INT4."""
    x, weight, _, grad_output = problem(((500, 64), 1))
    inv_std = (x.var(1, unbiased=False, keepdim=True) + 1e-3).rsqrt()
    normalized = (x - x.mean(1, keepdim=True)) * inv_std
    bias = inv_std * weight * grad_output * get_codec(codec).variance(normalized) / 64
    exact = run(F.layer_norm, [x, weight, weight, grad_output])[1][0]
    assert share / 4 < bias.norm() / exact.norm() < share


def test_seeds_and_draws():
    tensors = problem(((9, 5), 1))
    gradients = [run(lean.layer_norm, tensors, seed=seed)[1][1] for seed in (3, torch.tensor(3), 4)]
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([run(lean.layer_norm, tensors)[1][1] for _ in range(3)])
    identical(*runs)
    assert len({tuple(gradient.tolist()) for gradient in runs[0]}) == 3


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("codec", "drawn"), [("int2", True), ("fp32", False), ("bf16", False)])
def test_a_call_draws_where_there_is_rounding(enabled, codec, drawn):
    x = torch.randn(9, 4, requires_grad=True)
    state = torch.get_rng_state()
    with torch.set_grad_enabled(enabled):
        lean.layer_norm(x, (4,), codec=codec)
    assert torch.equal(torch.get_rng_state(), state) != drawn


@pytest.mark.parametrize("bad", [inf, -inf, nan])
@pytest.mark.parametrize("codec", ["fp32", "int2"])
def test_inf_and_nan_are_not_hidden(bad, codec):
    """A row that is not finite is not finite with torch either: nothing else is lost."""
    for spoiled in (0, 3):
        tensors = problem(((9, 4), 1))
        tensors[spoiled][3, 2] = bad
        ours, theirs = (run(f, tensors) for f in (partial(lean.layer_norm, codec=codec), F.layer_norm))
        identical(ours[0], theirs[0])
        for mine, exact in zip(ours[1], theirs[1], strict=True):
            assert torch.equal(mine.isfinite(), exact.isfinite())


def test_input_may_change_in_place_afterwards_and_gamma_may_not():
    tensors = problem(((9, 4), 1))
    expected = run(lean.layer_norm, tensors, codec="fp32")[1]
    x, weight, bias, grad_output = tensors
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    out = lean.layer_norm(x, (4,), weight, bias, 1e-3, codec="fp32")
    with torch.no_grad():
        x.zero_()
        out.zero_()
    identical(list(torch.autograd.grad(out, leaves, grad_output, retain_graph=True)), expected)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_retain_graph_gives_the_same_gradient_twice():
    x, weight, _, grad_output = problem(((9, 4), 1))
    leaves = x.requires_grad_(), weight.requires_grad_()
    out = lean.layer_norm(x, (4,), weight)
    first, second = (torch.autograd.grad(out, leaves, grad_output, retain_graph=True) for _ in range(2))
    identical(first, second)


@pytest.mark.parametrize("grad", [lambda x: x[:1].expand(9, 4), lambda x: x.t().contiguous().t(), lambda x: 0 * x])
def test_a_gradient_in_another_layout(grad):
    x, weight, bias, grad_output = problem(((9, 4), 1))
    leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
    results = []
    for arranged in (grad(grad_output), grad(grad_output).contiguous()):
        results.append(torch.autograd.grad(lean.layer_norm(x, (4,), weight, bias, seed=3), leaves, arranged))
    torch.testing.assert_close(*results)


def test_double_backward_raises():
    x = torch.randn(9, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(lean.layer_norm(x, (4,)).pow(3).sum(), x, create_graph=True)


@pytest.mark.parametrize(
    ("shape", "normalized"), [((0, 4), (4,)), ((3, 0), (0,)), ((0, 3, 4), (3, 4)), ((2, 0, 4), (4,))]
)
def test_nothing_to_normalize(shape, normalized):
    results = []
    for function in (lean.layer_norm, F.layer_norm):
        leaves = [torch.ones(size, requires_grad=True) for size in (shape, normalized, normalized)]
        out = function(leaves[0], normalized, *leaves[1:])
        out.sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    identical(*results)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f(x(6, 4), (5,)),
        lambda f, x: f(x(6, 4), ()),
        lambda f, x: f(x(6, 4), (4,), x(3)),
        lambda f, x: f(x(6, 4), (4,), x(4), x(5)),
        lambda f, x: f(x(4), (2, 4)),
    ],
)
def test_what_torch_refuses(call):
    def leaf(*shape):
        return torch.ones(shape, requires_grad=True)

    with pytest.raises(RuntimeError) as theirs:
        call(F.layer_norm, leaf)
    with pytest.raises(RuntimeError) as ours:
        call(lean.layer_norm, leaf)
    assert str(ours.value) == str(theirs.value)


def test_errors():
    x = torch.ones(9, 4, requires_grad=True)
    with pytest.raises(ValueError, match="'codec' must be a known name"):
        lean.layer_norm(x, (4,), codec="int3")
    with pytest.raises(TypeError, match="'seed' must be an int or an int64 scalar tensor"):
        lean.layer_norm(x, (4,), seed=1.5)
    with pytest.raises(TypeError, match="'x' must be of type float32"):
        lean.layer_norm(torch.ones(9, 4, dtype=torch.complex64, requires_grad=True), (4,))
