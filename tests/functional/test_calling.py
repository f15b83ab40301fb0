"""What holds for every function: autocast as torch's, checkpointing, vision for a ``TorchFunctionMode``."""

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from rmm_gnn import RMMConfig
from rmm_gnn import functional as lean

CONFIG = RMMConfig(rate=0.3)
identical = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def parameter(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(3)).add(0.5).requires_grad_()


MATRIX, GAMMA, BETA = parameter(6, 6), parameter(6), parameter(6)


def statistics():
    return torch.zeros(6), torch.ones(6)


# Ours and torch's as functions of x [*, 6].  A fixed seed makes them deterministic.
PAIRS = {
    "relu": (lambda x, **_: lean.relu(x), F.relu),
    "leaky_relu": (lambda x, **_: lean.leaky_relu(x), F.leaky_relu),
    "gelu": (lean.gelu, F.gelu),
    "silu": (lean.silu, F.silu),
    "elu": (lean.elu, F.elu),
    "dropout": (lean.dropout, None),
    "relu_dropout": (lean.relu_dropout, None),
    "batch_norm": (
        lambda x, **kwargs: lean.batch_norm(x, *statistics(), GAMMA, BETA, True, **kwargs),
        lambda x: F.batch_norm(x, *statistics(), GAMMA, BETA, True),
    ),
    "layer_norm": (
        lambda x, **kwargs: lean.layer_norm(x, (6,), GAMMA, BETA, **kwargs),
        lambda x: F.layer_norm(x, (6,), GAMMA, BETA),
    ),
    "rms_norm": (
        lambda x, **kwargs: lean.rms_norm(x, (6,), GAMMA, **kwargs),
        lambda x: F.rms_norm(x, (6,), GAMMA),
    ),
    "addmm": (
        lambda x, **kwargs: lean.addmm(BETA, x, MATRIX, config=CONFIG, **kwargs),
        lambda x: torch.addmm(BETA, x, MATRIX),
    ),
    "rmm_linear": (
        lambda x, **kwargs: lean.rmm_linear(x, MATRIX, BETA, config=CONFIG, **kwargs),
        lambda x: F.linear(x, MATRIX, BETA),
    ),
    "anchored_linear": (
        lambda x, **kwargs: lean.anchored_linear(x, MATRIX, x, config=CONFIG, **kwargs),
        lambda x: F.linear(x, MATRIX),
    ),
    "shared_input_linear": (
        lambda x, **kwargs: lean.shared_input_linear(x, MATRIX, codec="int8", **kwargs),
        lambda x: F.linear(x, MATRIX),
    ),
}
WITH_PARAMETERS = ["batch_norm", "layer_norm", "addmm", "rmm_linear", "anchored_linear", "shared_input_linear"]
NAME = pytest.mark.parametrize("name", PAIRS)
DRAWS = [name for name in PAIRS if name not in ("relu", "leaky_relu")]


@NAME
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grad", [True, False])
def test_autocast_is_torchs(name, dtype, grad):
    """The same type and values as torch under the same autocast; gradients of the types of their leaves."""
    ours, theirs = PAIRS[name]
    if dtype == torch.float64 and name in WITH_PARAMETERS:  # autocast leaves float64 alone, beside their float32
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises((RuntimeError, TypeError)):
            ours(torch.randn(40, 6, dtype=dtype, requires_grad=grad), seed=3)
        return
    x = torch.randn(40, 6).to(dtype).requires_grad_(grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = ours(x, seed=3)
        if theirs is not None:
            identical(out.detach(), theirs(x).detach())
        else:
            assert out.dtype == x.dtype
    if not grad:
        return
    leaves = x, MATRIX, GAMMA, BETA
    gradients = torch.autograd.grad(out.float().square().sum(), leaves, allow_unused=True)
    assert all(
        gradient is None or gradient.dtype == leaf.dtype for gradient, leaf in zip(gradients, leaves, strict=True)
    )
    assert gradients[0].isfinite().all()


@NAME
def test_backward_inside_autocast_is_that_outside(name):
    gradients = []
    for inside in (True, False):
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = PAIRS[name][0](x, seed=3).float().square().sum()
            if inside:
                gradients.append(torch.autograd.grad(total, (x, MATRIX, GAMMA, BETA), allow_unused=True))
        if not inside:
            gradients.append(torch.autograd.grad(total, (x, MATRIX, GAMMA, BETA), allow_unused=True))
    for first, second in zip(*gradients, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2)


@NAME
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_the_same(name, reentrant):
    """From the same generator state: the same output, the same gradients, and the generator where it would be."""
    results = []
    for wrap in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=reentrant)):
        x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        torch.manual_seed(5)
        leaves = [x, MATRIX, GAMMA, BETA]
        for leaf in leaves:
            leaf.grad = None
        # What comes after the first draw must come out the same too.
        out = wrap(lambda x: F.dropout(PAIRS[name][0](x), 0.3), x)
        state = torch.get_rng_state()
        out.square().sum().backward()
        results.append([out.detach(), state, *(leaf.grad.clone() for leaf in leaves if leaf.grad is not None)])
    identical(*results)


@NAME
def test_no_two_training_calls_draw_the_same(name):
    x = torch.randn(40, 6, requires_grad=True)
    states = [torch.get_rng_state()]
    for enabled in (True, False, True):
        with torch.set_grad_enabled(enabled):
            PAIRS[name][0](x)
        states.append(torch.get_rng_state())
    moved = [not torch.equal(before, after) for before, after in pairwise(states)]
    assert moved == [name in DRAWS] * 3


@NAME
def test_an_explicit_seed_leaves_the_generator_alone(name):
    x = torch.randn(40, 6, requires_grad=True)
    state = torch.get_rng_state()
    PAIRS[name][0](x, seed=3).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@NAME
def test_a_function_mode_sees_the_call(name):
    """As it sees those of torch's own functions, once."""

    class Recorder(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.seen.append(func)
            return func(*args, **(kwargs or {}))

    x = torch.randn(40, 6, requires_grad=True)
    expected = PAIRS[name][0](x, seed=3)
    with Recorder() as recorder:
        out = PAIRS[name][0](x, seed=3)
    identical(out, expected)
    assert recorder.seen.count(getattr(lean, name)) == 1


def test_all_functions_are_here():
    assert set(lean.__all__) == set(PAIRS)
