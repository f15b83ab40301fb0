"""Dropout without a mask: torch's in distribution, exact given the mask, and the mask the same in both directions.

The kept share of each p is measured over SEEDS seeds of ENTRIES entries, 24 million in all.
"""

from functools import partial
from math import ceil, inf, nan, prod

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rmm_gnn import functional as lean
from rmm_gnn.autograd.bit_masks import TILE
from rmm_gnn.autograd.dropout import apply_dropout
from tests.nn.recording import saved_tensors, storages

BOTH = pytest.mark.parametrize("function", [lean.dropout, lean.relu_dropout], ids=["dropout", "relu_dropout"])
SHARES = [0.01, 0.1, 0.5, 0.9, 0.999]
SHARE = pytest.mark.parametrize("p", SHARES)
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
SHAPES = [(), (1,), (63,), (0, 5), (5, 0), (63, 1), (7, 129), (3, 4, 5)]
SEEDS, ENTRIES = 40, 600_000
SEED = 41
identical = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def kept(size, p, seed=SEED):
    """The mask of ``size`` entries, bool."""
    return lean.dropout(torch.ones(size), p, seed=seed) != 0


def noise(shape, p, dtype=torch.float32, seed=SEED):
    """What torch would multiply by, with the seed's mask."""
    return kept(prod(shape), p, seed).view(shape).to(dtype).div_(1 - p)


@SHARE
def test_kept_share(p):
    total = sum(int(kept(ENTRIES, p, seed).sum()) for seed in range(SEEDS))
    count = SEEDS * ENTRIES
    sigma = (count * p * (1 - p)) ** 0.5
    assert abs(total - count * (1 - p)) < 5 * sigma
    assert 0.05 * min(p, 1 - p) * count > 7 * sigma, "too few entries to see 5 %"


@SHARE
def test_every_entry_has_the_same_chance(p):
    """The counts of single entries over seeds, and of single masks over entries, scatter as binomials do."""
    seeds, entries = 3000, 200
    masks = torch.stack([kept(entries, p, seed) for seed in range(seeds)]).double()
    variance = p * (1 - p)
    for dim, trials, others in ((0, seeds, entries), (1, entries, seeds)):
        z = (masks.sum(dim) - trials * (1 - p)) / (trials * variance) ** 0.5
        # Kurtosis of a binomial: 3 + (1 - 6 p (1 - p)) / (n p (1 - p)).
        spread = (2 + (1 - 6 * variance) / (trials * variance)) / others
        assert abs(z.square().mean() - 1) < 5 * spread**0.5


@SHARE
@pytest.mark.parametrize("lag", [1, 2, 8, 32, 129, 1024, TILE - 1, TILE, TILE + 1, 2 * TILE])
def test_entries_do_not_know_each_other(p, lag):
    mask = kept(3 * TILE, p).double() - (1 - p)
    products = mask[lag:] * mask[:-lag]
    assert products.sum().abs() < 5 * len(products) ** 0.5 * p * (1 - p)


def test_two_entries_of_two_tiles_do_not_know_each_other():
    """The words of such four entries add up to 0 bit by bit, since each is the xor of a tile's and a lane's."""
    signs = kept(8 * TILE, 0.5).double().mul_(2).sub_(1).view(8, TILE)
    for lane in (1, 2, 64):
        pairs = signs[:, lane:] * signs[:, :-lane]
        for tile in range(1, 8):
            products = pairs[0] * pairs[tile]
            assert products.sum().abs() < 5 * len(products) ** 0.5


def test_masks_of_different_seeds_do_not_know_each_other():
    masks = [kept(TILE, 0.5, seed).double() - 0.5 for seed in (0, 1, 2, 3, 2**31, 2**32, 2**32 + 1, -1)]
    for number, first in enumerate(masks):
        for second in masks[:number]:
            assert (first * second).sum().abs() < 5 * TILE**0.5 / 4


@SHARE
@DTYPE
def test_kept_entries_are_scaled_as_torch_scales_them(p, dtype):
    """The two values that entries are multiplied by, and the product with them, are torch's."""
    ones = torch.ones(20_000, dtype=dtype)
    assert torch.equal(lean.dropout(ones, p).unique(), F.dropout(ones, p).unique())
    x = torch.randn(7, 129, dtype=dtype)
    identical(lean.dropout(x, p, seed=SEED), x * noise(x.shape, p, dtype))
    identical(lean.relu_dropout(x, p, seed=SEED), F.relu(x) * noise(x.shape, p, dtype))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@DTYPE
@pytest.mark.parametrize("shape", [*SHAPES, (TILE + 5,), (2, TILE + 3)], ids=str)
def test_the_gradient_sees_the_mask_and_the_scale_of_forward(p, dtype, shape):
    x, grad_output = torch.randn(shape, dtype=dtype), torch.randn(shape).to(dtype)
    scale = noise(shape, p, dtype)
    leaf = x.clone().requires_grad_()
    lean.dropout(leaf, p, seed=SEED).backward(grad_output)
    identical(leaf.grad, grad_output * scale)

    expected, leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    F.relu(expected).backward(grad_output * scale)
    lean.relu_dropout(leaf, p, seed=SEED).backward(grad_output)
    identical(leaf.grad, expected.grad)


@SHARE
def test_the_drawn_mask_of_a_training_call_is_that_of_backward(p):
    x = torch.ones(5000, requires_grad=True)
    for _ in range(3):
        x.grad = None
        out = lean.dropout(x, p)
        out.sum().backward()
        identical(out.detach(), x.grad)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.t(),
        lambda x: x[:, ::2],
        lambda x: x[:, :1].expand(-1, 6),
        lambda x: x.view(2, 8, 9).permute(2, 0, 1),
    ],
)
@BOTH
def test_layouts(function, layout):
    """Entries are counted in the order of a contiguous tensor, of x as of its gradient."""
    leaf, results = torch.randn(16, 9), []
    grad_output = torch.randn(layout(leaf).shape[::-1]).permute(*range(layout(leaf).dim())[::-1])
    for arrange, grad in ((lambda x: x, grad_output), (torch.Tensor.contiguous, grad_output.contiguous())):
        x = leaf.clone().requires_grad_()
        out = function(arrange(layout(x)), 0.4, seed=SEED)
        out.backward(grad)
        results.append((out.detach(), x.grad))
    identical(*results)


@BOTH
def test_the_mask_does_not_depend_on_the_shape(function):
    x = torch.randn(60)
    assert torch.equal(function(x, seed=SEED).view(3, 4, 5), function(x.view(3, 4, 5), seed=SEED))


@BOTH
def test_seeds_and_draws(function):
    """A seed decides all; without one, every call draws, and torch.manual_seed replays the draws."""
    x = torch.rand(500) + 1
    state = torch.get_rng_state()
    assert torch.equal(function(x, seed=3), function(x, seed=torch.tensor(3)))
    assert not torch.equal(function(x, seed=3), function(x, seed=4))
    assert torch.equal(torch.get_rng_state(), state)
    runs = []
    for _ in range(2):
        torch.manual_seed(5)
        runs.append([function(x) for _ in range(4)])
    identical(*runs)
    assert all(not torch.equal(a, b) for number, a in enumerate(runs[0]) for b in runs[0][:number])


@BOTH
def test_no_grad_draws_the_same_mask(function):
    """Reentrant checkpointing runs its first pass without grad: its output must be that of the second pass."""
    results, states = [], []
    for enabled in (False, True):
        for leaf in (torch.ones(300), torch.ones(300, requires_grad=True)):
            torch.manual_seed(1)
            with torch.set_grad_enabled(enabled):
                results.append(function(leaf).detach())
            states.append(torch.get_rng_state())
    assert all(torch.equal(result, results[0]) for result in results)
    assert all(torch.equal(state, states[0]) for state in states)


@BOTH
def test_out_of_training_nothing_happens(function):
    x = torch.randn(50, requires_grad=True)
    state = torch.get_rng_state()
    out = function(x, 0.5, False)
    assert torch.equal(torch.get_rng_state(), state)
    if function is lean.dropout:
        assert out is x
    else:
        identical(out, F.relu(x))


@BOTH
@pytest.mark.parametrize("p", [0, 0.0, 1, 1.0])
def test_all_or_nothing_is_torchs(function, p):
    x = torch.tensor([1.0, -2.0, 0.0, inf, -inf, nan])
    results = []
    for candidate in (function, F.dropout if function is lean.dropout else lambda x, p: F.dropout(F.relu(x), p)):
        leaf = x.clone().requires_grad_()
        out = candidate(leaf, p)
        out.backward(torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, inf]))
        results.append((out.detach(), leaf.grad))
    identical(*results)


@SHARE
def test_inf_and_nan(p):
    """torch multiplies: what is dropped of an inf is nan, in forward and in the gradient."""
    values = torch.tensor([0.0, -1.5, 1.5, inf, -inf, nan]).repeat(50)
    leaf = values.clone().requires_grad_()
    out = lean.dropout(leaf, p, seed=SEED)
    identical(out.detach(), values * noise(values.shape, p))
    out.backward(values.flip(0))
    identical(leaf.grad, values.flip(0) * noise(values.shape, p))
    identical(lean.relu_dropout(leaf, p, seed=SEED).detach(), F.relu(values) * noise(values.shape, p))


def test_nan_passes_relu_and_dropout():
    x = torch.full((200,), nan, requires_grad=True)
    lean.relu_dropout(x, 0.3, seed=SEED).sum().backward()
    identical(x.grad, noise((200,), 0.3))


def test_a_masked_gradient_of_inf_is_zero_in_the_fused_form():
    """One bit tells what passes both; where it is 0 the gradient is 0, as ReLU has it."""
    x = torch.randn(200, requires_grad=True)
    lean.relu_dropout(x, 0.3, seed=SEED).backward(torch.full((200,), inf))
    passes = (x > 0) & kept(200, 0.3)
    identical(x.grad, torch.where(passes, inf, 0.0))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_kept_bytes(shape, dtype):
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    with saved_tensors() as saved:
        lean.dropout(x, 0.3)
    assert sum(storages(saved).values()) == (8 if x.numel() else 0)
    with saved_tensors() as saved:
        lean.relu_dropout(x, 0.3)
    assert sum(storages(saved).values()) == ceil(prod(shape) / 8)


@BOTH
def test_nothing_is_kept_without_a_gradient(function):
    with saved_tensors() as saved:
        function(torch.randn(50))
        with torch.no_grad():
            function(torch.randn(50, requires_grad=True))
    assert saved == []


def test_input_and_output_may_change_in_place_afterwards():
    for function in (lean.dropout, lean.relu_dropout):
        x = torch.ones(200, requires_grad=True)
        out = function(x, 0.4, seed=SEED)
        with torch.no_grad():
            x.neg_()
            out.zero_()
        out.sum().backward()
        identical(x.grad, noise((200,), 0.4))


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x[1], lambda x: x.t(), lambda x: x[:, ::2]])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_in_place_overwrites_its_argument(view, p):
    leaf, results = torch.randn(6, 10), []
    for inplace in (True, False):
        x = leaf.clone().requires_grad_()
        part = view(1 * x)
        out = lean.dropout(part, p, inplace=inplace, seed=SEED)
        assert (out is part) == (inplace or p == 0)
        if inplace:
            identical(part, out)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    identical(*results)


@pytest.mark.parametrize("function", [lean.dropout, F.dropout])
@pytest.mark.parametrize("p", [0.3, 1.0])
def test_in_place_refuses_what_torch_refuses(function, p):
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place"):
        function(torch.randn(3, requires_grad=True), p, inplace=True)


@BOTH
def test_retain_graph_gives_the_same_gradient_twice(function):
    x = torch.randn(90, requires_grad=True)
    out = function(x).sum()
    first, second = (torch.autograd.grad(out, x, retain_graph=True)[0] for _ in range(2))
    identical(first, second)


@BOTH
def test_double_backward_raises(function):
    x = torch.randn(40, requires_grad=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(function(x).square().sum(), x, create_graph=True)


class LargestTemporary(TorchDispatchMode):
    """Notes the largest tensor that an operator inside makes besides those of full size."""

    def __init__(self, full):
        super().__init__()
        self.full, self.largest = full, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().nbytes() < self.full:
            self.largest = max(self.largest, out.untyped_storage().nbytes())
        return out


def test_a_mask_of_full_size_is_never_made():
    x = torch.ones(40 * TILE, dtype=torch.uint8).to(torch.bfloat16)
    with LargestTemporary(full=x.untyped_storage().nbytes()) as mode:
        apply_dropout(x, 0.5, torch.tensor(3))
    assert 0 < mode.largest <= 8 * TILE


@BOTH
@pytest.mark.parametrize(
    ("p", "error", "match"),
    [
        (-0.1, ValueError, r"'p' must lie in \[0, 1\] \(got -0.1\)"),
        (1.1, ValueError, r"'p' must lie in \[0, 1\] \(got 1.1\)"),
        (nan, ValueError, r"'p' must lie in \[0, 1\] \(got nan\)"),
        ("0.5", TypeError, r"'p' must be a number \(got str\)"),
        (True, TypeError, r"'p' must be a number \(got bool\)"),
    ],
)
def test_errors_of_p(function, p, error, match):
    with pytest.raises(error, match=match):
        function(torch.ones(3), p)


@BOTH
@pytest.mark.parametrize(
    ("x", "seed", "error", "match"),
    [
        (torch.ones(3, dtype=torch.int64), None, TypeError, "'x' must be of type float32"),
        (torch.eye(3).to_sparse(), None, TypeError, "'x' must be a dense tensor"),
        ([1.0, 2.0], None, TypeError, "'x' must be a tensor"),
        (torch.ones(3), 1.5, TypeError, "'seed' must be an int or an int64 scalar tensor"),
        (torch.ones(3), torch.ones(1, dtype=torch.int64), TypeError, "'seed' must be an int64 scalar tensor"),
        (torch.ones(3), 2**63, ValueError, "'seed' must fit in 64 bits"),
    ],
)
def test_errors_of_x_and_seed(function, x, seed, error, match):
    with pytest.raises(error, match=match):
        function(x, 0.5, seed=seed)
