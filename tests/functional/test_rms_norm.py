"""Root-mean-square normalisation: torch's output, the gradient exact but for the codec's noise.

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

pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
# Shape of x, how many of its dimensions are normalised.
CASES = [((9,), 1), ((6, 4), 1), ((63, 1), 1), ((7, 129), 1), ((5, 3, 4), 1), ((5, 3, 4), 2), ((2, 3, 4), 3)]
CASE = pytest.mark.parametrize("case", CASES, ids=str)
DTYPES = {  # of x, of gamma
    "fp32": (torch.float32, torch.float32),
    "fp64": (torch.float64, torch.float64),
    "bf16": (torch.bfloat16, torch.bfloat16),
    "fp16": (torch.float16, torch.float16),
    "bf16 beside fp32": (torch.bfloat16, torch.float32),
    "fp32 beside bf16": (torch.float32, torch.bfloat16),
}
DTYPE = pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES.keys())
DRAWS, COPIES = 200, 100
identical = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def problem(case, dtypes=(torch.float64, torch.float64)):
    """x, gamma, and the gradient of the output."""
    shape, dims = case
    generator = torch.Generator().manual_seed(len(shape) * 100 + prod(shape))
    x, grad_output = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    weight = torch.rand(shape[-dims:], generator=generator, dtype=torch.float64) + 0.5
    # The gradient of gamma is not all noise.
    return [(2 * x + 1).to(dtypes[0]), weight.to(dtypes[1]), (grad_output + x).to(dtypes[0])]


def run(function, tensors, needs=(True, True), layout=lambda x: x, eps=1e-3, **kwargs):
    """Output, and the gradients of x and gamma (None where not needed)."""
    x, weight, grad_output = (tensor.clone() for tensor in tensors)
    leaves = [leaf.requires_grad_(needed) for leaf, needed in zip((x, weight), needs, strict=True)]
    out = function(layout(x), weight.shape, weight, eps, **kwargs)
    if any(needs):
        out.backward(grad_output.to(out.dtype))
    return out.detach(), [leaf.grad for leaf in leaves]


@CASE
@DTYPE
@pytest.mark.parametrize("codec", ["fp32", "int2"])
@pytest.mark.parametrize("eps", [1e-3, None])
def test_output_is_that_of_torch(case, dtypes, codec, eps):
    tensors = problem(case, dtypes)
    tensors[0].mul_(0 if eps is None and tensors[0].numel() == 63 else 1)  # where only eps keeps it finite
    ours, theirs = run(lean.rms_norm, tensors, codec=codec, eps=eps)[0], run(F.rms_norm, tensors, eps=eps)[0]
    identical(ours, theirs)


@CASE
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gradients_are_those_of_torch_where_nothing_is_rounded(case, dtype, tolerance):
    tensors = problem(case, (dtype, dtype))
    ours, theirs = (run(f, tensors)[1] for f in (partial(lean.rms_norm, codec="fp32"), F.rms_norm))
    for mine, exact in zip(ours, theirs, strict=True):
        assert (mine - exact).norm() <= tolerance * max(exact.norm(), tensors[-1].norm())


@DTYPE
def test_gradients_in_low_precision(dtypes):
    tensors = problem(((6, 40), 1), dtypes)
    exact = run(F.rms_norm, [tensor.double() for tensor in tensors])[1]
    ours = run(lean.rms_norm, tensors, codec="fp32")[1]
    lowest = max(torch.finfo(dtype).eps for dtype in dtypes)
    for mine, truth, kind in zip(ours, exact, dtypes, strict=True):
        assert mine.dtype == kind
        assert (mine.double() - truth).norm() <= 4 * lowest * truth.norm()


@pytest.mark.parametrize("needs", [n for n in product([True, False], repeat=2) if any(n)], ids=str)
@pytest.mark.parametrize("given", [True, False], ids=["gamma", "no gamma"])
def test_only_what_is_needed(needs, given):
    def call(function, **kwargs):
        x, weight, grad_output = problem(((5, 3, 4), 2))
        x.requires_grad_(needs[0])
        weight = weight.requires_grad_(needs[1]) if given else None
        out = function(x, (3, 4), weight, **kwargs)
        if out.requires_grad:
            out.backward(grad_output)
        return out.detach(), [leaf.grad for leaf in (x, weight) if leaf is not None]

    (ours, mine), (theirs, exact) = call(lean.rms_norm, codec="fp32"), call(F.rms_norm)
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
        (((9, 4), 1), lambda x: x[:1].expand(9, 4)),
    ],
)
def test_layouts(case, layout):
    tensors = problem(case, (torch.float32, torch.float32))
    (ours, mine), (theirs, exact) = (
        run(function, tensors, layout=layout) for function in (partial(lean.rms_norm, codec="fp32"), F.rms_norm)
    )
    identical(ours, theirs)
    torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-5)


def test_more_rows_than_are_handled_at_a_time():
    tensors = problem(((700, 600), 1), (torch.float32, torch.float32))
    (ours, mine), (theirs, exact) = (
        run(function, tensors) for function in (partial(lean.rms_norm, codec="fp32"), F.rms_norm)
    )
    identical(ours, theirs)
    torch.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-4)
    for gradient, expected in zip(run(lean.rms_norm, tensors, codec="int8")[1], exact, strict=True):
        assert (gradient - expected).norm() < 0.03 * expected.norm()


@CASE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("codec", ["int1", "int2", "int4:group_size=3", "bf16", "fp32"])
def test_kept_bytes(case, dtype, codec):
    """The code and 1/sigma of every row; gamma is kept as it is."""
    x, weight, _ = problem(case, (dtype, torch.float32 if dtype != torch.float64 else dtype))
    leaves = [leaf.requires_grad_() for leaf in (x, weight)]
    with saved_tensors() as saved:
        lean.rms_norm(x, weight.shape, weight, codec=codec)
    size = sum(kept_storages(saved, besides=leaves).values())
    columns = weight.numel()
    rows, statistics = x.numel() // columns, 8 if dtype == torch.float64 else 4
    assert size == get_codec(codec).num_bytes(rows, columns, dtype) + rows * statistics
    if codec == "int2":
        assert size == rows * (ceil(columns / 4) + 4) + rows * statistics


@pytest.mark.parametrize(("needs", "weight_too"), [((True, False), True), ((False, True), False)])
def test_gamma_is_kept_for_the_gradient_of_x_alone(needs, weight_too):
    x, weight, _ = problem(((9, 6), 1), (torch.float32, torch.float32))
    for leaf, needed in zip((x, weight), needs, strict=True):
        leaf.requires_grad_(needed)
    with saved_tensors() as saved:
        lean.rms_norm(x, (6,), weight)
    assert any(tensor.data_ptr() == weight.data_ptr() for tensor in saved) == weight_too


def test_without_a_gradient_it_is_torchs():
    x, weight, _ = problem(((9, 4), 1))
    expected = F.rms_norm(x, (4,), weight)
    with saved_tensors() as saved:
        identical(lean.rms_norm(x, (4,), weight), expected)
        with torch.no_grad():
            identical(lean.rms_norm(x.requires_grad_(), (4,), weight), expected)
    assert saved == []


@pytest.mark.parametrize("case", [((240, 7), 1), ((240, 3, 3), 2)], ids=str)
@pytest.mark.parametrize("codec", ["int1", "int2", "int8"])
def test_gradient_of_gamma_is_unbiased(case, codec):
    tensors = problem(case)
    exact = run(F.rms_norm, tensors)[1][1]
    assert_unbiased(lambda: run(lean.rms_norm, tensors, codec=codec)[1][1], exact, draws=120)


@pytest.mark.parametrize("case", [((5, 4), 1), ((2, 3, 3), 2), ((3, 7), 1)], ids=str)
@pytest.mark.parametrize("codec", ["int1", "int2", "int2:group_size=4,scale=fp32"])
def test_bias_of_the_gradient_of_x_is_the_closed_form(case, codec):
    x, weight, grad_output = problem(case)
    columns = weight.numel()
    x, grad_output = (tensor.repeat(COPIES, *(1,) * (tensor.dim() - 1)) for tensor in (x, grad_output))
    tensors = [x, weight, grad_output]
    rows = x.view(-1, columns)
    inv_rms = (rows.square().mean(1, keepdim=True) + 1e-3).rsqrt()
    normalized = rows * inv_rms
    scaled = grad_output.view(-1, columns) * weight.flatten() * inv_rms
    bias = -scaled * get_codec(codec).variance(normalized) / columns
    exact = run(F.rms_norm, tensors)[1][0]

    with one_thread():
        samples = torch.stack([run(lean.rms_norm, tensors, codec=codec)[1][0] for _ in range(DRAWS)])
    errors = (samples - exact).view(DRAWS, COPIES, -1).mean(1)
    expected = bias.view(COPIES, -1).mean(0)
    sigma = errors.std(0) / DRAWS**0.5
    assert ((errors.mean(0) - expected).abs() < 5 * sigma + 1e-12).all()
    along = errors @ expected
    assert (along.mean() - expected @ expected).abs() < 5 * along.std() / DRAWS**0.5
    assert expected @ expected > 10 * along.std() / DRAWS**0.5, "too few draws to see the bias"


def test_seeds_and_draws():
    tensors = problem(((9, 5), 1))
    gradients = [run(lean.rms_norm, tensors, seed=seed)[1][1] for seed in (3, torch.tensor(3), 4)]
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([run(lean.rms_norm, tensors)[1][1] for _ in range(3)])
    identical(*runs)
    assert len({tuple(gradient.tolist()) for gradient in runs[0]}) == 3


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("codec", "drawn"), [("int2", True), ("fp32", False), ("bf16", False)])
def test_a_call_draws_where_there_is_rounding(enabled, codec, drawn):
    x = torch.randn(9, 4, requires_grad=True)
    state = torch.get_rng_state()
    with torch.set_grad_enabled(enabled):
        lean.rms_norm(x, (4,), codec=codec)
    assert torch.equal(torch.get_rng_state(), state) != drawn


@pytest.mark.parametrize("bad", [inf, -inf, nan])
@pytest.mark.parametrize("codec", ["fp32", "int2"])
def test_inf_and_nan_are_not_hidden(bad, codec):
    """Whatever is not finite with torch is not finite here."""
    for spoiled in (0, 2):
        tensors = problem(((9, 4), 1))
        tensors[spoiled][3, 2] = bad
        ours, theirs = (run(f, tensors) for f in (partial(lean.rms_norm, codec=codec), F.rms_norm))
        identical(ours[0], theirs[0])
        for mine, exact in zip(ours[1], theirs[1], strict=True):
            assert not (mine.isfinite() & ~exact.isfinite()).any()
            assert mine.dim() == 1 or mine[:3].isfinite().all(), "other rows are not touched"


def test_input_may_change_in_place_afterwards_and_gamma_may_not():
    tensors = problem(((9, 4), 1))
    expected = run(lean.rms_norm, tensors, codec="fp32")[1]
    x, weight, grad_output = tensors
    leaves = [leaf.requires_grad_() for leaf in (x, weight)]
    out = lean.rms_norm(x, (4,), weight, 1e-3, codec="fp32")
    with torch.no_grad():
        x.zero_()
        out.zero_()
    identical(list(torch.autograd.grad(out, leaves, grad_output, retain_graph=True)), expected)
    with torch.no_grad():
        weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("grad", [lambda x: x[:1].expand(9, 4), lambda x: x.t().contiguous().t(), lambda x: 0 * x])
def test_a_gradient_in_another_layout(grad):
    x, weight, grad_output = problem(((9, 4), 1))
    leaves = [leaf.requires_grad_() for leaf in (x, weight)]
    results = []
    for arranged in (grad(grad_output), grad(grad_output).contiguous()):
        results.append(torch.autograd.grad(lean.rms_norm(x, (4,), weight, seed=3), leaves, arranged))
    torch.testing.assert_close(*results)


def test_double_backward_raises():
    x = torch.randn(9, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(lean.rms_norm(x, (4,)).pow(3).sum(), x, create_graph=True)


@pytest.mark.parametrize(("shape", "normalized"), [((0, 4), (4,)), ((0, 3, 4), (3, 4)), ((2, 0, 4), (4,))])
def test_nothing_to_normalize(shape, normalized):
    results = []
    for function in (lean.rms_norm, F.rms_norm):
        leaves = [torch.ones(size, requires_grad=True) for size in (shape, normalized)]
        out = function(leaves[0], normalized, leaves[1])
        out.sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    identical(*results)


@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: f(x(6, 4), (5,)),
        lambda f, x: f(x(6, 4), ()),
        lambda f, x: f(x(6, 4), (4,), x(3)),
        lambda f, x: f(x(4), (2, 4)),
    ],
)
def test_what_torch_refuses(call):
    def leaf(*shape):
        return torch.ones(shape, requires_grad=True)

    with pytest.raises((RuntimeError, ValueError)) as theirs:
        call(F.rms_norm, leaf)
    with pytest.raises(type(theirs.value)) as ours:
        call(lean.rms_norm, leaf)
    assert str(ours.value) == str(theirs.value)


def test_errors():
    x = torch.ones(9, 4, requires_grad=True)
    with pytest.raises(ValueError, match="'codec' must be a known name"):
        lean.rms_norm(x, (4,), codec="int3")
    with pytest.raises(TypeError, match="'seed' must be an int or an int64 scalar tensor"):
        lean.rms_norm(x, (4,), seed=1.5)
    with pytest.raises(TypeError, match="'x' must be of type float32"):
        lean.rms_norm(torch.ones(9, 4, dtype=torch.complex64, requires_grad=True), (4,))
