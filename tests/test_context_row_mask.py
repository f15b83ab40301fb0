"""compress_activations(row_mask=...): linear layers sketch the marked rows where an input has the mask's shape."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.utils.checkpoint import checkpoint

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm, memory_report, rmm_linear
from rmm_gnn.nn import RMMTorchLinear
from rmm_gnn.row_masks import CurrentRowMask
from rmm_gnn.sharing import KeptOnce
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

WIDTH = 8
MASK = torch.arange(12) < torch.tensor([12, 3, 7, 2]).unsqueeze(1)  # [4, 12], 24 rows
CONFIG = RMMConfig(rate=0.25)
WHOLE, MARKED = CONFIG.saved_bytes(48, WIDTH), CONFIG.saved_bytes(24, WIDTH)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 12, WIDTH)


def kept(call, *besides: Tensor, row_mask: Tensor | None = MASK) -> int:
    """Bytes that are kept besides the mask."""
    with compress_activations(CONFIG, row_mask=row_mask), saved_tensors() as saved:
        call()
    return sum(kept_storages(saved, besides=[MASK, *besides]).values())


def current(mask: Tensor) -> CurrentRowMask:
    """What layers read as the mask of this forward pass."""
    row_masks = CurrentRowMask()
    row_masks.mask = mask
    return row_masks


@pytest.mark.parametrize("layer", [Linear(WIDTH, 5), RMMTorchLinear(WIDTH, 5, config=CONFIG)], ids=["torch", "ours"])
def test_an_input_of_the_masks_shape_is_sketched_in_part(x, layer):
    assert kept(lambda: layer(x)) == MARKED
    assert kept(lambda: layer(x), row_mask=None) == WHOLE
    assert kept(lambda: layer(x.flatten(0, 1))) == WHOLE
    assert kept(lambda: layer(x.transpose(0, 1))) == WHOLE
    assert kept(lambda: layer(x[:, 0])) == CONFIG.saved_bytes(4, WIDTH)
    assert kept(lambda: layer(x.flatten(0, 1)), row_mask=MASK.flatten()) == MARKED


def test_the_other_spellings(x):
    weight, bias = Parameter(torch.randn(WIDTH, 5)), torch.zeros(5)
    assert kept(lambda: x @ weight) == kept(lambda: torch.matmul(x, weight)) == MARKED
    rows, mask = x.flatten(0, 1), MASK.flatten()
    assert kept(lambda: rows.mm(weight), row_mask=mask) == MARKED
    assert kept(lambda: torch.addmm(bias, rows, weight), row_mask=mask) == WHOLE  # has no mask
    marks = torch.zeros_like(MASK)
    marks[0, :4] = True
    own = CONFIG.saved_bytes(4, WIDTH)  # a mask of the call's own goes before the mode's
    assert kept(lambda: rmm_linear(x, weight.t(), config=CONFIG, row_mask=marks), marks) == own


def test_layers_that_read_one_tensor_under_one_mask_share_a_sketch(x):
    layers = [Linear(WIDTH, WIDTH) for _ in range(3)]
    assert kept(lambda: [layer(x) for layer in layers]) == MARKED
    sketches, other = KeptOnce(), ~MASK

    def with_masks(*masks: Tensor | None) -> int:
        with saved_tensors() as saved:
            for layer, mask in zip(layers, masks, strict=True):
                rmm_linear(x, layer.weight, config=CONFIG, shared=sketches, row_mask=mask)
        return sum(kept_storages(saved, besides=[MASK, other]).values())

    assert with_masks(MASK, MASK, MASK) == MARKED
    assert with_masks(MASK, other, MASK) == 2 * MARKED
    assert with_masks(MASK, None, torch.ones_like(MASK)) == MARKED + WHOLE


def test_a_mask_that_was_changed_is_another_one(x):
    sketches, mask = KeptOnce(), MASK.clone()
    weights = [torch.randn(3, WIDTH, requires_grad=True) for _ in range(2)]
    outs = []
    for weight in weights:
        outs.append(rmm_linear(x, weight, config=RMMConfig(rate=1.0), shared=sketches, row_mask=mask))
        mask[0, :4] = False
    mask[0, :4] = False
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outs[0].sum().backward()


def test_the_gradients_are_unbiased_and_shared_sketches_are_read_right(x):
    layers = [Linear(WIDTH, 3) for _ in range(2)]
    weights = [layer.weight for layer in layers]
    marks = MASK.unsqueeze(-1)
    config = RMMConfig(rate=0.8)

    def grads(mode) -> Tensor:
        with mode:
            out = sum((layer(x + 2) * marks * (i + 1)).sum() for i, layer in enumerate(layers))
        return torch.cat(torch.autograd.grad(out, weights))

    exact = grads(torch.enable_grad())
    assert_unbiased(lambda: grads(compress_activations(config, row_mask=MASK)), exact, draws=150)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputation_within_a_checkpointed_function(x, use_reentrant):
    """The gradient is that of the marked rows, exactly where all of these are kept, and replayed where not."""
    layer, marks = Linear(WIDTH, 3), MASK.unsqueeze(-1)
    x.requires_grad_()

    def gradient(config: RMMConfig, seed: int) -> Tensor:
        def block(x: Tensor) -> Tensor:
            with compress_activations(config, row_mask=MASK):
                return layer(x)

        torch.manual_seed(seed)
        layer.weight.grad = None
        checkpoint(block, x, use_reentrant=use_reentrant).backward(torch.where(marks, x.detach(), 7.0)[..., :3])
        return layer.weight.grad

    rows = x.detach()[MASK]
    exact = rows[:, :3].T @ rows
    torch.testing.assert_close(gradient(RMMConfig(rate=1.0), 0), exact)
    first, again, other = (gradient(CONFIG, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_held_inputs_stay_exact(x):
    layer = Linear(WIDTH, 3)
    with compress_activations(CONFIG, held=(x,), row_mask=MASK):
        layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum((0, 1)).expand(3, WIDTH))


def test_memory_report_counts_the_mask_once(x):
    model = torch.nn.Sequential(*(Linear(WIDTH, WIDTH) for _ in range(3)))
    with compress_activations(CONFIG, row_mask=MASK):
        report = memory_report(model, x)
    assert report.saved_bytes == 3 * MARKED + MASK.nbytes


def test_training_layers_take_a_mask(x):
    layer = convert_to_rmm(Linear(WIDTH, 3), CONFIG)
    layer.row_masks = current(MASK)
    with saved_tensors() as saved:
        out = layer(x)
    assert sum(kept_storages(saved, besides=[MASK]).values()) == MARKED
    assert torch.equal(out, layer.eval()(x)) and torch.equal(out, F.linear(x, layer.weight, layer.bias))


def test_norms_of_the_step_before_go_by_all_rows(x):
    layer = RMMTorchLinear(WIDTH, 3, config=RMMConfig(rate=0.5, sketch="importance_sampling"))
    layer.row_masks = current(MASK)

    def step() -> Tensor:
        layer.weight.grad = None
        out = layer(x)
        out[[0, 2, 2], [11, 0, 6]].sum().backward()
        return layer.weight.grad

    exact = x[[0, 2, 2], [11, 0, 6]].sum(0).expand(3, WIDTH)
    assert not torch.allclose(step(), exact, rtol=1e-3)
    assert layer.__dict__["_rmm_next_row_norms"].shape == (48,)
    # The three rows that have a gradient are known now, and kept with certainty.
    torch.testing.assert_close(step(), exact, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("wrong", [MASK.long(), MASK.tolist()])
def test_a_mask_that_is_none_is_refused_at_once(wrong):
    with pytest.raises(TypeError, match="'row_mask' must be a dense tensor of bools"):
        compress_activations(CONFIG, row_mask=wrong)


def test_a_mask_on_another_device_is_refused(x):
    with (
        pytest.raises(ValueError, match="'row_mask' must be on the device of 'x'"),
        compress_activations(CONFIG, row_mask=MASK.to("meta")),
    ):
        Linear(WIDTH, 3)(x)
