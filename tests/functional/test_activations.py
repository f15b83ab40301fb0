"""GELU, SiLU and ELU: torch's values; a gradient that is right on average, and torch's own where nothing is rounded."""

from functools import partial
from math import ceil, inf, nan, prod

import pytest
import torch
import torch.nn.functional as F

from rmm_gnn import functional as lean
from rmm_gnn.codecs import get_codec
from tests.nn.recording import assert_unbiased, one_thread, saved_tensors, storages

PAIRS = {
    "gelu": (lean.gelu, F.gelu),
    "gelu, tanh": (partial(lean.gelu, approximate="tanh"), partial(F.gelu, approximate="tanh")),
    "silu": (lean.silu, F.silu),
    "elu": (lean.elu, F.elu),
    "elu, alpha 0.3": (partial(lean.elu, alpha=0.3), partial(F.elu, alpha=0.3)),
    "elu, alpha 2": (partial(lean.elu, alpha=2), partial(F.elu, alpha=2)),
}
PAIR = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
IN_PLACE = pytest.mark.parametrize("pair", list(PAIRS.values())[2:], ids=list(PAIRS)[2:])
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
SHAPES = [(), (1,), (63,), (0, 5), (0,), (5, 0), (63, 1), (7, 129), (3, 4, 5)]
LAYOUTS = {
    "transposed": lambda x: x.t(),
    "every other": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 6),
    "three dimensions": lambda x: x.view(2, 8, 9).permute(2, 0, 1),
    "channels last": lambda x: x.view(2, 8, 3, 3).contiguous(memory_format=torch.channels_last),
}
DRAWS = 400
identical = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def run(function, leaf, layout=lambda x: x, grad_output=None, **kwargs):
    """The output of ``function`` on ``layout(leaf)`` and the gradient that reaches the leaf."""
    leaf = leaf.detach().clone().requires_grad_()
    out = function(layout(leaf), **kwargs)
    if grad_output is None:
        grad_output = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    out.backward(grad_output.to(out.dtype))
    return out.detach(), leaf.grad


def derivative(function, x):
    x = x.detach().double().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


@PAIR
@DTYPE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_where_nothing_is_rounded_the_gradient_are_those_of_torch(pair, dtype, shape):
    """In the low types the derivative is rounded once to the type, and the product once more."""
    x = 2 * torch.randn(shape, dtype=dtype)
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14}.get(dtype, 2 * torch.finfo(dtype).eps)
    theirs = run(pair[1], x)
    for codec in ("fp32", "int2"):
        ours = run(pair[0], x, codec=codec)
        identical(ours[0], theirs[0])
        assert ours[1].shape == x.shape and ours[1].dtype == dtype
        if codec == "fp32":
            torch.testing.assert_close(ours[1], theirs[1], rtol=tolerance, atol=tolerance)


@PAIR
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(pair, layout):
    x = torch.randn(16, 9)
    ours, theirs = run(pair[0], x, layout, codec="fp32"), run(pair[1], x, layout)
    identical(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=2e-5)
    # Another layout takes another path through torch's kernels: a last bit may turn the rounding of a code.
    arranged = [run(pair[0], x, how, seed=3)[1] for how in (layout, lambda x: layout(x).contiguous())]
    torch.testing.assert_close(*arranged, rtol=1e-3, atol=1e-3)


@PAIR
def test_a_gradient_in_another_layout(pair):
    x = torch.randn(7, 13)
    for grad_output in (torch.randn(13, 7).t(), torch.randn(7, 1).expand(7, 13), torch.randn(14, 13)[::2]):
        ours = [run(pair[0], x, grad_output=grad, seed=3)[1] for grad in (grad_output, grad_output.contiguous())]
        identical(*ours)


@PAIR
@pytest.mark.parametrize("shape", [(700, 600), (2**18 + 5, 1), (2, 2**18 + 3)], ids=str)
def test_more_than_is_handled_at_a_time(pair, shape):
    x = torch.randn(shape)
    ours, theirs = run(pair[0], x, codec="fp32"), run(pair[1], x)
    identical(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-5, atol=1e-6)
    rounded = run(pair[0], x, codec="int8:scale=fp32")[1]
    assert (rounded - theirs[1]).norm() < 0.01 * theirs[1].norm()


@PAIR
@pytest.mark.parametrize("codec", ["int1", "int2", "int4", "int4:group_size=32"])
def test_the_gradient_is_unbiased(pair, codec):
    x = 2 * torch.randn(7, 129, dtype=torch.float64)
    exact = run(pair[1], x)[1]
    assert_unbiased(lambda: run(pair[0], x, codec=codec)[1], exact, draws=200)


@PAIR
@pytest.mark.parametrize("codec", ["int2", "int4"])
def test_every_entry_is_right_on_average(pair, codec):
    """g E[f'] = g f', with the variance g^2 v of the code, entry by entry and in all."""
    x, grad_output = (torch.randn(5, 33, dtype=torch.float64) for _ in range(2))
    exact = derivative(pair[1], x)
    variance = grad_output.square() * get_codec(codec).variance(exact)
    with one_thread():
        samples = torch.stack([run(pair[0], x, grad_output=grad_output, codec=codec)[1] for _ in range(DRAWS)])
    errors = samples - grad_output * exact
    # Entries that leave their grid point once in DRAWS draws are Poisson, not normal.
    step = variance.new_tensor(1 / 3 if codec == "int2" else 1 / 15) * 1.5 * grad_output.abs()
    assert (errors.mean(0).abs() < 5 * ((variance + step.square() / DRAWS) / DRAWS).sqrt()).all()
    ratio = errors.square().sum() / (DRAWS * variance.sum())
    assert 0.95 < ratio < 1.05


@PAIR
def test_a_rounded_input_would_not_do(pair):
    """Why the derivative is kept: from an input rounded without bias to two bits, the mean gradient is another."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64).repeat(2000, 1)
    codec = get_codec("int2")
    rounded = codec.decode(codec.encode_matrix(x, torch.tensor(3)), 0, *x.shape, torch.float64)
    assert (rounded.mean(0) - x[0]).abs().max() < 0.15
    biased = (derivative(pair[1], rounded).mean(0) - derivative(pair[1], x[:1])[0]).abs().max()
    mean = run(pair[0], x, grad_output=torch.ones_like(x), codec=codec)[1].mean(0)
    assert biased > 0.08 > 0.05 > (mean - derivative(pair[1], x[:1])[0]).abs().max()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("codec", ["int2", "int4", "int4:group_size=3", "bf16", "fp32"])
@pytest.mark.parametrize("function", [lean.gelu, lean.silu, lean.elu], ids=["gelu", "silu", "elu"])
def test_kept_bytes(function, shape, codec):
    """A row of the code is a run of the last dimension."""
    dtype = torch.bfloat16 if codec == "fp32" else torch.float32  # "fp32" keeps the type that comes
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    with saved_tensors() as saved:
        function(x, codec=codec)
    columns = shape[-1] if shape else 1
    rows = prod(shape) // columns if columns else 0
    size = sum(storages(saved).values())
    if not x.numel():
        assert size == 0
    else:
        assert size == get_codec(codec).num_bytes(rows, columns, dtype)
    if codec == "int4":
        assert size == rows * (ceil(columns / 2) + 4)


@PAIR
def test_four_bits_are_the_default(pair):
    x = torch.randn(7, 9)
    identical(run(pair[0], x, seed=3), run(pair[0], x, seed=3, codec="int4"))


@PAIR
def test_without_a_gradient_it_is_torchs(pair):
    x = torch.randn(7, 9)
    with saved_tensors() as saved:
        identical(pair[0](x), pair[1](x))
        with torch.no_grad():
            identical(pair[0](x.clone().requires_grad_()), pair[1](x))
    assert saved == []


@PAIR
def test_seeds_and_draws(pair):
    x = torch.randn(7, 9)
    gradients = [run(pair[0], x, seed=seed)[1] for seed in (3, torch.tensor(3), 4)]
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([run(pair[0], x)[1] for _ in range(3)])
    identical(*runs)
    assert len({tuple(gradient.flatten().tolist()) for gradient in runs[0]}) == 3


@PAIR
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize(("codec", "drawn"), [("int4", True), ("fp32", False), ("bf16", False)])
def test_a_call_draws_where_there_is_rounding(pair, enabled, codec, drawn):
    x = torch.randn(7, 9, requires_grad=True)
    state = torch.get_rng_state()
    with torch.set_grad_enabled(enabled):
        pair[0](x, codec=codec)
    assert torch.equal(torch.get_rng_state(), state) != drawn


@PAIR
@pytest.mark.parametrize("codec", ["fp32", "int4"])
@pytest.mark.parametrize("bad", [inf, -inf, nan])
def test_inf_and_nan_are_not_hidden(pair, codec, bad):
    """What is not finite with torch is not finite here; a code may lose the rest of its row, and no other row."""
    for spoil_x in (True, False):
        x, grad_output = torch.randn(5, 9), torch.randn(5, 9)
        (x if spoil_x else grad_output)[3, 2] = bad
        ours, theirs = run(pair[0], x, grad_output=grad_output, codec=codec), run(pair[1], x, grad_output=grad_output)
        identical(ours[0], theirs[0])
        finite = theirs[1].isfinite()
        assert not ours[1][~finite].isfinite().any()
        assert ours[1][[0, 1, 2, 4]].isfinite().all()
        if codec == "fp32" or not spoil_x or finite.all():
            assert torch.equal(ours[1].isfinite(), finite)


@IN_PLACE
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[1], lambda x: x.t(), lambda x: x[:, ::2]])
def test_in_place_overwrites_its_argument(pair, view):
    leaf, results = torch.randn(6, 10), []
    for function in (partial(pair[0], codec="fp32"), pair[1]):
        x = leaf.clone().requires_grad_()
        base = 1 * x
        part = view(base)
        out = function(part, inplace=True)
        assert out is part
        (out.square().sum() + base.sum()).backward()
        results.append((base.detach(), x.grad))
    identical(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-5)


@IN_PLACE
def test_in_place_refuses_what_torch_refuses(pair):
    for function in pair:
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
            function(torch.randn(3, requires_grad=True), inplace=True)


def test_elu_takes_a_negative_alpha():
    """Which torch's in-place form refuses in backward, since it has only the output to go by."""
    x = torch.randn(5, 9)
    ours = run(partial(lean.elu, alpha=-0.7), x, codec="fp32")
    theirs = run(partial(F.elu, alpha=-0.7), x)
    identical(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@PAIR
def test_input_and_output_may_change_in_place_afterwards(pair):
    x = torch.randn(5, 9)
    leaf = x.clone().requires_grad_()
    out = pair[0](leaf, seed=3)
    with torch.no_grad():
        leaf.zero_()
        out.zero_()
    out.sum().backward()
    identical(leaf.grad, run(pair[0], x, grad_output=torch.ones(5, 9), seed=3)[1])


@PAIR
def test_retain_graph_gives_the_same_gradient_twice(pair):
    x = torch.randn(5, 9, requires_grad=True)
    out = pair[0](x).sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    identical(first, second)


@PAIR
def test_double_backward_raises(pair):
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(pair[0](x).square().sum(), x, create_graph=True)


@PAIR
def test_errors(pair):
    x = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="'codec' must be a known name"):
        pair[0](x, codec="int3")
    with pytest.raises(TypeError, match="'seed' must be an int or an int64 scalar tensor"):
        pair[0](x, seed=1.5)
    with pytest.raises(TypeError, match="'x' must be a dense tensor"):
        pair[0](torch.eye(3).to_sparse().requires_grad_())


def test_errors_of_approximate():
    with pytest.raises(ValueError, match="'approximate' must be a known name"):
        lean.gelu(torch.ones(3), "quick")
