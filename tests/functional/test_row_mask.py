"""A row mask: the weight gradient is that of the marked rows alone, to the bit, and all else is exact over all rows."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.diagnostics import rmm_variance
from rmm_gnn.row_masks import count_rows, row_numbers
from rmm_gnn.sketches import FAMILIES, Sketch
from tests.nn.recording import assert_unbiased, saved_tensors, storages
from tests.sketches.cases import CASES, norms_for

# Families that need a grid of rows refuse a mask.
MASKABLE = {name: family for name, family in CASES.items() if not family.reads_shape}
FAMILY = pytest.mark.parametrize("family", MASKABLE.values(), ids=MASKABLE.keys())
LENGTHS = torch.tensor([10, 3, 7, 1, 0, 9])
MASK = torch.arange(10) < LENGTHS.unsqueeze(1)  # [6, 10], 30 rows
SEED = 41


def problem(dtype=torch.float64):
    """x [6, 10, 6], weight, bias, and a gradient of the output that padding does not have."""
    generator = torch.Generator().manual_seed(0)
    x = 0.5 * torch.randn(6, 10, 6, generator=generator, dtype=torch.float64) + 1.0
    weight = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    grad_output = 0.5 * torch.randn(6, 10, 4, generator=generator, dtype=torch.float64) + 1.0
    return [t.to(dtype).requires_grad_() for t in (x, weight, bias)] + [(grad_output * MASK.unsqueeze(-1)).to(dtype)]


def weight_grad(x: Tensor, weight: Tensor, grad_output: Tensor, **arguments) -> Tensor:
    out = rmm_linear(x, weight, **{"seed": SEED, **arguments})
    return torch.autograd.grad(out, weight, grad_output)[0]


@FAMILY
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_weight_gradient_is_that_of_the_marked_rows(family, center, dtype):
    x, weight, _, grad_output = problem(dtype)
    config, norms = RMMConfig(rate=0.3, sketch=family, center=center), norms_for(family, 60)
    masked = weight_grad(x, weight, grad_output, config=config, row_mask=MASK, row_norms=norms)
    norms = None if norms is None else norms[MASK.flatten()]
    assert torch.equal(masked, weight_grad(x[MASK], weight, grad_output[MASK], config=config, row_norms=norms))
    # A transposed and an expanded input, where rows are not laid out one after the other.
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    again = weight_grad(strided, weight, grad_output, config=config, row_mask=MASK, row_norms=norms_for(family, 60))
    assert torch.equal(masked, again)


@FAMILY
@pytest.mark.parametrize("codec", ["fp32", "int4"])
def test_a_small_workspace_changes_the_rounding_alone(family, codec):
    x, weight, _, grad_output = problem()
    config = RMMConfig(rate=0.5, sketch=family, codec=codec, workspace_bytes=2**10)
    masked = weight_grad(x, weight, grad_output, config=config, row_mask=MASK)
    compacted = weight_grad(x[MASK], weight, grad_output[MASK], config=RMMConfig(rate=0.5, sketch=family, codec=codec))
    torch.testing.assert_close(masked, compacted)


def test_all_else_is_exact_over_all_rows():
    """Also where the masked rows have a gradient after all: the weight's is then that of the others."""
    x, weight, bias, grad_output = problem()
    grad_output = torch.where(MASK.unsqueeze(-1), grad_output, 2.0)
    out = rmm_linear(x, weight, bias, config=RMMConfig(rate=1.0), row_mask=MASK)
    assert torch.equal(out, F.linear(x, weight, bias))
    out.backward(grad_output)
    torch.testing.assert_close(x.grad, grad_output @ weight)
    torch.testing.assert_close(bias.grad, grad_output.sum((0, 1)))
    torch.testing.assert_close(weight.grad, grad_output[MASK].T @ x[MASK])


def test_gradcheck_of_x_and_bias():
    x, weight, bias, _ = problem()

    def call(x, bias):
        return rmm_linear(x, weight, bias, config=RMMConfig(rate=0.5), seed=SEED, row_mask=MASK[1:4, :3])

    assert torch.autograd.gradcheck(call, (x[1:4, :3].detach().requires_grad_(), bias))


@pytest.mark.parametrize("config", [RMMConfig(rate=0.7), RMMConfig(rate=0.7, codec="int2")])
def test_the_estimate_is_unbiased_and_as_noisy_as_rmm_variance_says(config):
    """800 draws; 5 % too much would show, and so would a variance that is larger by a third."""
    x, weight, _, grad_output = problem()
    exact, errors = grad_output[MASK].T @ x[MASK].detach(), []

    def draw():
        found = weight_grad(x, weight, grad_output, config=config, row_mask=MASK, seed=None)
        errors.append((found - exact).square().sum())
        return found

    assert_unbiased(draw, exact, draws=800)
    noise = torch.stack(errors)
    sigma = noise.std() / len(noise) ** 0.5
    expected = rmm_variance(x[MASK].detach(), grad_output[MASK], config, num_draws=100)
    assert (noise.mean() - expected).abs() < 5 * sigma < (noise.mean() - 4 / 3 * expected).abs()


@FAMILY
@pytest.mark.parametrize("center", [True, False])
def test_masked_rows_are_not_read(family, center):
    x, weight, _, grad_output = problem(torch.float32)
    config = RMMConfig(rate=0.3, sketch=family, center=center)
    clean = weight_grad(x, weight, grad_output, config=config, row_mask=MASK)
    for bad in (float("inf"), float("nan")):
        spoiled = torch.where(MASK.unsqueeze(-1), x.detach(), bad)
        assert torch.equal(clean, weight_grad(spoiled, weight, grad_output, config=config, row_mask=MASK))
        spoiled = torch.where(MASK.unsqueeze(-1), grad_output, bad)
        assert torch.equal(clean, weight_grad(x, weight, spoiled, config=config, row_mask=MASK))
        spoiled = x.detach().clone()
        spoiled[0, 3, 2] = bad  # a marked row
        found = weight_grad(spoiled, weight, grad_output, config=config, row_mask=MASK)
        assert not torch.isfinite(found[:, 2]).any()


@FAMILY
@pytest.mark.parametrize("needs_x", [True, False])
def test_kept_are_the_marked_rows_and_one_mask_for_all_layers(family, needs_x):
    x, weight, bias, _ = problem(torch.float32)
    x.requires_grad_(needs_x)
    config, mask = RMMConfig(rate=0.3, sketch=family), MASK.clone()
    for layers in (1, 3):
        with saved_tensors() as saved:
            for _ in range(layers):
                rmm_linear(x, weight, bias, config=config, row_mask=mask)
        kept = storages(saved)
        assert kept[mask.untyped_storage().data_ptr()] == mask.nbytes == 60
        ours = sum(kept.values()) - mask.nbytes - weight.nbytes * needs_x
        assert ours == layers * config.saved_bytes(30, 6, torch.float32)
    assert config.saved_bytes(30, 6) < config.saved_bytes(60, 6)


def test_a_mask_of_all_rows_is_no_mask():
    x, weight, _, grad_output = problem()
    every = torch.ones_like(MASK)
    with saved_tensors() as saved:
        masked = weight_grad(x, weight, grad_output, config=RMMConfig(), row_mask=every)
    assert torch.equal(masked, weight_grad(x, weight, grad_output, config=RMMConfig()))
    assert every.untyped_storage().data_ptr() not in storages(saved)


def test_with_no_row_nothing_is_kept_and_the_weight_gradient_is_zero():
    x, weight, bias, _ = problem()
    none = torch.zeros_like(MASK)
    with saved_tensors() as saved:
        out = rmm_linear(x.detach(), weight, bias, config=RMMConfig(), row_mask=none)
    assert not saved and torch.equal(out, F.linear(x, weight, bias))
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    torch.testing.assert_close(bias.grad, torch.full_like(bias, 60.0))
    x_grad = torch.autograd.grad(rmm_linear(x, weight, bias, config=RMMConfig(), row_mask=none).sum(), x)[0]
    torch.testing.assert_close(x_grad, weight.sum(0).expand_as(x))


def test_one_row_and_inputs_of_any_number_of_dimensions():
    _, weight, _, _ = problem()
    for shape in ((), (7,), (2, 3, 4)):
        mask = torch.zeros(shape, dtype=torch.bool)
        mask.view(-1)[0] = True
        x = torch.randn(*shape, 6, dtype=torch.float64)
        found = weight_grad(x, weight, mask.double().unsqueeze(-1) * torch.ones(4), config=RMMConfig(), row_mask=mask)
        torch.testing.assert_close(found, x.view(-1, 6)[0].expand(4, 6))


def test_the_same_seed_gives_the_same_gradient_and_backward_can_run_twice():
    x, weight, _, grad_output = problem()
    config = RMMConfig(rate=0.3)
    first, again, other = (
        weight_grad(x, weight, grad_output, config=config, row_mask=MASK, seed=seed) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other)
    out = rmm_linear(x, weight, config=config, seed=5, row_mask=MASK)
    for _ in range(2):
        assert torch.equal(torch.autograd.grad(out, weight, grad_output, retain_graph=True)[0], first)


def test_a_frozen_weight_or_no_grad_mode_keeps_nothing():
    x, weight, bias, _ = problem()
    with saved_tensors() as saved, torch.no_grad():
        rmm_linear(x, weight, bias, config=RMMConfig(), row_mask=MASK)
    with saved_tensors() as frozen:
        rmm_linear(x.detach(), weight.detach(), bias, config=RMMConfig(), row_mask=MASK)
    assert not saved and not frozen


def test_changing_the_mask_in_place_before_backward_raises():
    x, weight, _, grad_output = problem()
    mask = MASK.clone()
    out = rmm_linear(x, weight, config=RMMConfig(), row_mask=mask)
    mask[0, 0] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(grad_output)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_under_checkpointing_redraws_the_same_sketch(use_reentrant):
    x, weight, _, grad_output = problem()
    gradients = []
    for run in (lambda f, x: f(x), lambda f, x: checkpoint(f, x, use_reentrant=use_reentrant)):
        torch.manual_seed(3)
        weight.grad = None
        run(lambda x: rmm_linear(x, weight, config=RMMConfig(rate=0.3), row_mask=MASK), x).backward(grad_output)
        gradients.append(weight.grad)
    assert torch.equal(*gradients)


def test_autocast_keeps_the_marked_rows_in_the_low_type():
    x, weight, bias, grad_output = problem(torch.float32)
    config, mask = RMMConfig(rate=0.5), MASK.clone()
    with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors() as saved:
        out = rmm_linear(x.detach(), weight, bias, config=config, seed=SEED, row_mask=mask)
    assert sum(storages(saved).values()) == config.saved_bytes(30, 6, torch.bfloat16) + mask.nbytes
    low = (x.detach().bfloat16()[MASK], weight.detach().bfloat16().requires_grad_(), grad_output.bfloat16()[MASK])
    found = torch.autograd.grad(out, weight, grad_output.bfloat16())[0]
    assert torch.equal(found, weight_grad(*low, config=config).float())


def test_a_family_that_does_not_select_rows_is_given_a_copy(monkeypatch):
    class Whole(Sketch):
        name = "whole"

        def to_dense(self, num_rows, sketch_size, seed, *, state=(), dtype=torch.float32):
            return torch.eye(num_rows, dtype=dtype)[:, :sketch_size]

        def sketch_rows(self, matrix, draw, start, stop):
            assert draw.rows is None
            return matrix[start:stop].clone()

    monkeypatch.setitem(FAMILIES, "whole", Whole)
    x, weight, _, grad_output = problem()
    found = weight_grad(x, weight, grad_output, config=RMMConfig(rate=1.0, sketch=Whole()), row_mask=MASK)
    torch.testing.assert_close(found, grad_output[MASK].T @ x[MASK])


@pytest.mark.parametrize("mask", [MASK, MASK.T, MASK[::2, ::3], torch.ones(5, dtype=torch.bool), MASK.expand(3, 6, 10)])
def test_rows_are_numbered_as_an_input_is_flattened(mask):
    rows = row_numbers(mask, count_rows(mask))
    assert rows.dtype == torch.int32 and rows.tolist() == mask.flatten().nonzero().squeeze(1).tolist()


def test_nothing_holds_a_mask():
    x, weight, _, _ = problem()
    mask = MASK.clone()
    reference = weakref.ref(mask)
    out = rmm_linear(x, weight, config=RMMConfig(), row_mask=mask)
    del mask, out
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(
    ("mask", "error", "match"),
    [
        (MASK.long(), TypeError, "'row_mask' must be a dense tensor of bools .got torch.int64."),
        (MASK.tolist(), TypeError, "'row_mask' must be a dense tensor of bools .got list."),
        (MASK.to_sparse(), TypeError, "'row_mask' must be a dense tensor of bools"),
        (MASK.flatten(), ValueError, r"'row_mask' must have the leading shape of 'x', \(6, 10\) \(got \(60,\)\)"),
        (MASK.T, ValueError, "'row_mask' must have the leading shape of 'x'"),
        (MASK.to("meta"), ValueError, "'row_mask' must be on the device of 'x'"),
    ],
)
def test_errors(mask, error, match):
    x, weight, _, _ = problem()
    with pytest.raises(error, match=match):
        rmm_linear(x, weight, config=RMMConfig(), row_mask=mask)
