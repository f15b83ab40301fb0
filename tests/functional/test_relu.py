"""ReLU and leaky ReLU: torch's values and torch's gradients, bit for bit, from one bit an entry."""

from functools import partial
from math import ceil, inf, nan, prod

import pytest
import torch
import torch.nn.functional as F

from rmm_gnn import functional as lean
from rmm_gnn.autograd.bit_masks import TILE
from tests.nn.recording import saved_tensors, storages


def slope(value):
    return tuple(partial(function, negative_slope=value) for function in (lean.leaky_relu, F.leaky_relu))


PAIRS = {
    "relu": (lean.relu, F.relu),
    "leaky_relu": (lean.leaky_relu, F.leaky_relu),
    "leaky_relu, a third": slope(1 / 3),
    "leaky_relu, steeper": slope(2),
    "leaky_relu, rising": slope(-0.5),
}
# torch has no in-place form of a slope below 0.
IN_PLACE = pytest.mark.parametrize("pair", list(PAIRS.values())[:-1], ids=list(PAIRS)[:-1])
PAIR = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
SHAPES = [(), (1,), (63,), (0, 5), (5, 0), (63, 1), (7, 129), (3, 4, 5)]
LAYOUTS = {
    "transposed": lambda x: x.t(),
    "every other": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :1].expand(-1, 6),
    "three dimensions": lambda x: x.view(2, 8, 9).permute(2, 0, 1),
    "channels last": lambda x: x.view(2, 8, 3, 3).contiguous(memory_format=torch.channels_last),
}
identical = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def run(function, leaf, layout=lambda x: x, grad_output=None):
    """The output of ``function`` on ``layout(leaf)`` and the gradient that reaches the leaf."""
    leaf = leaf.detach().clone().requires_grad_()
    out = function(layout(leaf))
    if grad_output is None:
        grad_output = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    out.backward(grad_output)
    return out.detach(), leaf.grad


@PAIR
@DTYPE
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradient_are_those_of_torch(pair, dtype, shape):
    x = torch.randn(shape, dtype=dtype)
    for ours, theirs in zip(run(pair[0], x), run(pair[1], x), strict=True):
        identical(ours, theirs)


@PAIR
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(pair, layout):
    x = torch.randn(16, 9)
    for ours, theirs in zip(run(pair[0], x, layout), run(pair[1], x, layout), strict=True):
        identical(ours, theirs)


@PAIR
def test_a_gradient_in_another_layout(pair):
    x = torch.randn(7, 13)
    for grad_output in (torch.randn(13, 7).t(), torch.randn(7, 1).expand(7, 13), torch.randn(14, 13)[::2]):
        ours, theirs = (run(function, x, grad_output=grad_output) for function in pair)
        identical(ours[1], theirs[1])


@PAIR
@pytest.mark.parametrize("size", [TILE - 1, TILE, TILE + 1, TILE + 5, 2 * TILE + 3])
def test_sizes_about_a_tile(pair, size):
    x = torch.randn(size)
    for ours, theirs in zip(run(pair[0], x), run(pair[1], x), strict=True):
        identical(ours, theirs)


@PAIR
@DTYPE
def test_zero_inf_and_nan(pair, dtype):
    """Every special input meets every special gradient: a masked inf is 0, never nan."""
    values = torch.tensor([0.0, -0.0, 1.5, -1.5, inf, -inf, nan], dtype=dtype)
    x, grad_output = values.repeat_interleave(len(values)), values.repeat(len(values))
    identical(*(run(function, x, grad_output=grad_output) for function in pair))


def test_relu_passes_nan_and_masks_inf():
    x = torch.tensor([nan, -1.0, 0.0, 2.0], requires_grad=True)
    out = lean.relu(x)
    out.backward(torch.tensor([3.0, inf, nan, inf]))
    identical(out.detach(), torch.tensor([nan, 0.0, 0.0, 2.0]))
    identical(x.grad, torch.tensor([3.0, 0.0, 0.0, inf]))


@PAIR
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_one_bit_for_every_entry_is_kept(pair, shape):
    x = torch.randn(shape, requires_grad=True)
    with saved_tensors() as saved:
        pair[0](x)
    assert len(saved) == 1 and sum(storages(saved).values()) == ceil(prod(shape) / 8)


@PAIR
def test_nothing_is_kept_or_drawn_without_a_gradient(pair):
    state = torch.get_rng_state()
    x = torch.randn(5, generator=torch.Generator().manual_seed(0))
    with saved_tensors() as saved:
        identical(pair[0](x), pair[1](x))
        with torch.no_grad():
            identical(pair[0](x.clone().requires_grad_()), pair[1](x))
    assert saved == [] and torch.equal(torch.get_rng_state(), state)


@PAIR
def test_input_and_output_may_change_in_place_afterwards(pair):
    x = torch.randn(50)
    leaf = x.clone().requires_grad_()
    out = pair[0](leaf)
    with torch.no_grad():
        leaf.zero_()
        out.fill_(7)
    out.backward(torch.ones(50))
    identical(leaf.grad, run(pair[1], x, grad_output=torch.ones(50))[1])


@IN_PLACE
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[1], lambda x: x.t(), lambda x: x[:, ::2]])
def test_in_place_overwrites_its_argument(pair, view):
    leaf, results = torch.randn(6, 10), []
    for function in pair:
        x = leaf.clone().requires_grad_()
        base = 1 * x
        part = view(base)
        out = function(part, inplace=True)
        assert out is part
        (out.square().sum() + base.sum()).backward()
        results.append((base.detach(), x.grad))
    identical(*results)


@IN_PLACE
def test_in_place_refuses_what_torch_refuses(pair):
    for function in pair:
        with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
            function(torch.randn(3, requires_grad=True), inplace=True)
        overwritten = torch.randn(3, requires_grad=True).sigmoid()  # keeps its output
        function(overwritten, inplace=True)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            overwritten.sum().backward()


@PAIR
def test_in_place_without_a_gradient(pair):
    x = torch.randn(5)
    expected = pair[1](x)
    assert pair[0](x, inplace=True) is x
    identical(x, expected)


@PAIR
def test_retain_graph_gives_the_same_gradient_twice(pair):
    x = torch.randn(9, requires_grad=True)
    out = pair[0](x).sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    identical(first, second)


@PAIR
def test_double_backward_raises(pair):
    x = torch.randn(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(pair[0](x).square().sum(), x, create_graph=True)


@PAIR
def test_what_is_no_dense_floating_point_tensor_is_refused(pair):
    with pytest.raises(TypeError, match="'x' must be a dense tensor"):
        pair[0](torch.eye(3).to_sparse().requires_grad_())
    with pytest.raises(TypeError, match="'x' must be of type float32"):
        pair[0](torch.ones(3, dtype=torch.complex64, requires_grad=True))
