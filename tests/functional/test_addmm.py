"""``addmm``: all exact but the gradient of ``mat2``, which is the sketched product, unbiased."""

from functools import partial
from itertools import product
from math import inf, nan

import pytest
import torch

from rmm_gnn import RMMConfig
from rmm_gnn import functional as lean
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors
from tests.sketches.cases import CASES

FACTORS = [(1, 1), (0.5, 1), (1, 2), (0, 1), (1, 0), (-1.5, 0.25), (2, 3)]
FACTOR = pytest.mark.parametrize(("beta", "alpha"), FACTORS)
CONFIG = RMMConfig(rate=0.3)
WHOLE = RMMConfig(rate=1.0, sketch="row_sampling")
SEED = 41
ROWS, INNER, COLUMNS = 60, 6, 4
identical = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def problem(dtype=torch.float64, shape=(ROWS, COLUMNS)):
    """input, mat1, mat2 and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    shapes = shape, (ROWS, INNER), (INNER, COLUMNS), (ROWS, COLUMNS)
    return [torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in shapes]


def run(function, tensors, needs=(True, True, True), layout=lambda x: x, **kwargs):
    """The output, and the gradients of input, mat1 and mat2 (None where not needed)."""
    leaves = [tensor.clone().requires_grad_(needed) for tensor, needed in zip(tensors[:3], needs, strict=True)]
    out = function(leaves[0], layout(leaves[1]), leaves[2], **kwargs)
    if out.requires_grad:
        out.backward(tensors[3].to(out.dtype))
    return out.detach(), [leaf.grad for leaf in leaves]


@FACTOR
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_all_but_the_gradient_of_mat2_is_torchs(beta, alpha, dtype):
    tensors = problem(dtype)
    ours = run(lean.addmm, tensors, beta=beta, alpha=alpha, config=CONFIG)
    theirs = run(torch.addmm, tensors, beta=beta, alpha=alpha)
    identical(ours[0], theirs[0])
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12}.get(dtype, 1e-2)
    torch.testing.assert_close(ours[1][:2], theirs[1][:2], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(), (1,), (COLUMNS,), (1, 1), (1, COLUMNS), (ROWS, 1), (ROWS, COLUMNS)], ids=str)
def test_input_is_broadcast(shape):
    tensors = problem(shape=shape)
    ours = run(lean.addmm, tensors, beta=0.7, alpha=2, config=WHOLE)
    theirs = run(torch.addmm, tensors, beta=0.7, alpha=2)
    identical(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("family", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("center", [True, False])
def test_the_gradient_of_mat2_is_that_of_the_linear_layer(family, center):
    """The same sketch as ``rmm_linear`` makes from the same seed, times alpha."""
    config = RMMConfig(rate=0.3, sketch=family, center=center)
    tensors = problem()
    mine = run(lean.addmm, tensors, alpha=-1.5, config=config, seed=SEED)[1][2]
    weight = tensors[2].t().clone().requires_grad_()
    lean.rmm_linear(tensors[1], weight, config=config, seed=SEED).backward(tensors[3])
    torch.testing.assert_close(mine, -1.5 * weight.grad.t())


@FACTOR
def test_the_whole_rate_gives_torchs_gradient(beta, alpha):
    tensors = problem()
    functions = partial(lean.addmm, config=WHOLE), torch.addmm
    ours, theirs = (run(function, tensors, beta=beta, alpha=alpha)[1] for function in functions)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("config", [RMMConfig(rate=0.5), RMMConfig(rate=0.5, codec="int8")], ids=["fp32", "int8"])
def test_the_gradient_of_mat2_is_unbiased(config):
    tensors = problem()
    tensors[3] = tensors[3] + 2 * tensors[1][:, :COLUMNS]  # not all noise
    exact = run(torch.addmm, tensors, alpha=2)[1][2]
    assert_unbiased(lambda: run(lean.addmm, tensors, alpha=2, config=config)[1][2], exact, draws=600)


@pytest.mark.parametrize("needs", list(product([True, False], repeat=3)), ids=str)
def test_only_what_is_needed(needs):
    tensors = problem()
    ours, theirs = (run(function, tensors, needs) for function in (partial(lean.addmm, config=WHOLE), torch.addmm))
    identical(ours[0], theirs[0])
    for mine, exact in zip(ours[1], theirs[1], strict=True):
        assert (mine is None) == (exact is None)
        if exact is not None:
            torch.testing.assert_close(mine, exact)


@pytest.mark.parametrize("layout", [lambda x: x.t().contiguous().t(), lambda x: x.repeat_interleave(2, 1)[:, ::2]])
def test_layouts(layout):
    tensors = problem()
    results = [run(lean.addmm, tensors, layout=how, config=CONFIG, seed=SEED) for how in (layout, lambda x: x)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [CONFIG, RMMConfig(rate=0.2, codec="int4", center=False)], ids=["fp32", "int4"])
def test_kept_bytes(dtype, config):
    leaves = [tensor.requires_grad_() for tensor in problem(dtype)[:3]]
    with saved_tensors() as saved:
        lean.addmm(*leaves, config=config)
    assert sum(kept_storages(saved, besides=leaves).values()) == config.saved_bytes(ROWS, INNER, dtype)
    assert not any(tensor.data_ptr() in (leaves[0].data_ptr(), leaves[1].data_ptr()) for tensor in saved)


def test_where_mat2_is_frozen_it_is_torchs():
    tensors = problem()
    state = torch.get_rng_state()
    needs = True, True, False
    identical(run(lean.addmm, tensors, needs, config=CONFIG), run(torch.addmm, tensors, needs))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_grad_mode_nothing_is_kept_but_the_generator_moves():
    tensors = problem()
    tensors[2].requires_grad_()
    state = torch.get_rng_state()
    with torch.no_grad(), saved_tensors() as saved:
        identical(lean.addmm(*tensors[:3], config=CONFIG), torch.addmm(*tensors[:3]))
    assert saved == [] and not torch.equal(torch.get_rng_state(), state)


def test_beta_of_zero_ignores_input():
    tensors = problem()
    tensors[0][:] = nan
    ours, theirs = (run(function, tensors, beta=0) for function in (partial(lean.addmm, config=WHOLE), torch.addmm))
    identical(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


@pytest.mark.parametrize("bad", [inf, -inf, nan])
def test_inf_and_nan_reach_the_gradient_of_mat2(bad):
    for spoiled in (1, 3):
        tensors = problem()
        tensors[spoiled][37, 2] = bad
        gradient = run(lean.addmm, tensors, config=CONFIG)[1][2]
        assert not (gradient[2] if spoiled == 1 else gradient[:, 2]).isfinite().any()


def test_mat1_may_change_in_place_afterwards_and_mat2_may_not():
    tensors = problem()
    expected = run(lean.addmm, tensors, config=CONFIG, seed=SEED)[1]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors[:3]]
    out = lean.addmm(*leaves, config=CONFIG, seed=SEED)
    with torch.no_grad():
        leaves[0].zero_()
        leaves[1].zero_()
    torch.testing.assert_close(list(torch.autograd.grad(out, leaves, tensors[3], retain_graph=True)), expected)
    with torch.no_grad():
        leaves[2].zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_seeds_and_draws():
    tensors = problem()
    gradients = [run(lean.addmm, tensors, config=CONFIG, seed=seed)[1][2] for seed in (3, torch.tensor(3), 4)]
    assert torch.equal(gradients[0], gradients[1]) and not torch.equal(gradients[0], gradients[2])
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([run(lean.addmm, tensors, config=CONFIG)[1][2] for _ in range(3)])
    identical(*runs)
    assert len({tuple(gradient.flatten().tolist()) for gradient in runs[0]}) == 3


def test_retain_graph_gives_the_same_gradient_twice():
    leaves = [tensor.requires_grad_() for tensor in problem()[:3]]
    out = lean.addmm(*leaves, config=CONFIG).sum()
    first, second = (torch.autograd.grad(out, leaves, retain_graph=True) for _ in range(2))
    identical(first, second)


def test_double_backward_raises():
    leaves = [tensor.requires_grad_() for tensor in problem()[:3]]
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(lean.addmm(*leaves, config=CONFIG).square().sum(), leaves, create_graph=True)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows):
    leaves = [torch.ones(size, requires_grad=True) for size in ((4,), (rows, 6), (6, 4))]
    ours, theirs = lean.addmm(*leaves, config=CONFIG), torch.addmm(*leaves)
    identical(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(out.sum(), leaves) for out in (ours, theirs)))


def test_no_inner_columns():
    leaves = [torch.ones(size, requires_grad=True) for size in ((4,), (5, 0), (0, 4))]
    identical(lean.addmm(*leaves, config=CONFIG), torch.addmm(*leaves))


@pytest.mark.parametrize(
    "shapes",
    [((3,), (5, 4), (4, 2)), ((5, 3), (5, 4), (5, 3)), ((6, 3), (5, 4), (4, 3)), ((3,), (5, 4), (4,))],
)
def test_what_torch_refuses(shapes):
    leaves = [torch.ones(shape, requires_grad=True) for shape in shapes]
    for function in (torch.addmm, partial(lean.addmm, config=CONFIG)):
        with pytest.raises(RuntimeError):
            function(*leaves)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"mat1": [1.0]}, TypeError, "'mat1' must be a tensor"),
        ({"mat1": torch.ones(5)}, ValueError, "'mat1' must have two dimensions"),
        ({"mat1": torch.eye(5).to_sparse()}, TypeError, "'mat1' must be a dense tensor"),
        ({"mat1": torch.ones(5, 4, dtype=torch.int64)}, TypeError, "'mat1' must be of type float32"),
        ({"config": 0.1}, TypeError, "'config' must be an RMMConfig"),
        ({"seed": 1.5}, TypeError, "'seed' must be an int or an int64 scalar tensor"),
    ],
)
def test_errors(arguments, error, match):
    call = {"input": torch.ones(3), "mat1": torch.ones(5, 4), "mat2": torch.ones(4, 3), "config": CONFIG} | arguments
    with pytest.raises(error, match=match):
        lean.addmm(**call)
