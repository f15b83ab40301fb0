"""Padding has no gradient in a transformer whose loss does not read it, and the check says where it has one."""

import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, ModuleList

from rmm_gnn import GradientProbe, RMMConfig, compress_activations, rmm_linear
from rmm_gnn.diagnostics import check_row_masks
from tests.nn.recording import saved_tensors

BATCH, LENGTH, WIDTH, HEADS = 5, 8, 16, 4
MASK = torch.arange(LENGTH) < torch.tensor([8, 3, 5, 1, 6]).unsqueeze(1)


class Block(Module):
    """A layer of BERT: self-attention with a mask of keys, a feed-forward network, a norm after each."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mix = (Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = Linear(WIDTH, 2 * WIDTH), Linear(2 * WIDTH, WIDTH)
        self.norms = ModuleList(LayerNorm(WIDTH) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        hidden = torch.finfo(x.dtype).min * (~mask)[:, None, None, :]
        mixed = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5 + hidden).softmax(-1) @ v
        x = self.norms[0](x + self.mix(mixed.transpose(1, 2).flatten(-2)))
        return self.norms[1](x + self.down(F.gelu(self.up(x))))


class Encoder(Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = ModuleList(Block() for _ in range(2))
        self.head = Linear(WIDTH, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x)


def of_first_token(out: Tensor) -> Tensor:
    return out[:, 0].square().sum()


def of_masked_mean(out: Tensor) -> Tensor:
    return ((out * MASK.unsqueeze(-1)).sum(1) / MASK.sum(1, keepdim=True)).square().sum()


def of_all(out: Tensor) -> Tensor:
    return out.mean(1).square().sum()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH)


@pytest.mark.parametrize("loss", [of_first_token, of_masked_mean])
def test_padding_has_no_gradient_in_any_layer(x, loss):
    model, gradients = Encoder(), {}
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):
            layer.register_full_backward_hook(lambda _, __, grad, name=name: gradients.update({name: grad[0]}))
    with check_row_masks(), compress_activations(RMMConfig(rate=0.5), row_mask=MASK):
        out = loss(model(x.requires_grad_(), MASK))
    out.backward()
    assert len(gradients) == 13
    for name, gradient in gradients.items():
        assert (gradient[~MASK] == 0).all() and (gradient[MASK] != 0).any(), name


@pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
def test_a_loss_that_reads_padding_fails_the_check(x, inside):
    model = Encoder()
    with check_row_masks(), compress_activations(RMMConfig(rate=0.5), row_mask=MASK):
        out = of_all(model(x, MASK))
        if inside:
            with pytest.raises(RuntimeError, match="'row_mask' must mark every row whose output has a gradient"):
                out.backward()
            return
    with pytest.raises(RuntimeError, match=r"got 17 of 17 masked rows with one.* in a layer with 3 outputs"):
        out.backward()


def product(grad: Tensor, mask: Tensor) -> None:
    weight = torch.ones(3, 2, requires_grad=True)
    rmm_linear(torch.ones(4, 2), weight, config=RMMConfig(), row_mask=mask).backward(grad)


@pytest.mark.parametrize("mask", [[True, True, False, False], [False] * 4], ids=["some", "none"])
def test_the_number_of_rows_and_the_largest_norm_are_named(mask):
    mask = torch.tensor(mask)
    count = int((~mask).sum())
    grad = torch.zeros(4, 3)
    with check_row_masks():
        product(grad, mask)
        grad[3] = torch.tensor([3.0, 4.0, 0.0])
        grad[2, 1] = -1e-30  # whose square is zero in float32
        with pytest.raises(RuntimeError, match=rf"got 2 of {count} masked rows with one, the largest of norm 5,"):
            product(grad, mask)
        grad[2, 1] = float("nan")
        with pytest.raises(RuntimeError, match=rf"got 2 of {count} masked rows with one, the largest of norm nan,"):
            product(grad, mask)
    product(grad, mask)


def test_small_tiles_find_the_same():
    grad, mask = torch.zeros(100, 3), torch.arange(100) < 40
    grad[[41, 99]] = 2.0
    weight = torch.ones(3, 2, requires_grad=True)
    with check_row_masks():
        out = rmm_linear(torch.ones(100, 2), weight, config=RMMConfig(workspace_bytes=128), row_mask=mask)
    with pytest.raises(RuntimeError, match=r"got 2 of 60 masked rows with one, the largest of norm 3\.46"):
        out.backward(grad)


def test_it_is_decided_in_forward_for_all_threads_and_changes_no_number():
    grad = torch.ones(4, 3)
    mask = torch.tensor([True, True, True, False])
    x, weight = torch.randn(4, 2), torch.ones(3, 2, requires_grad=True)

    def forward():
        return rmm_linear(x, weight, config=RMMConfig(rate=0.5), seed=1, row_mask=mask)

    unchecked = forward()
    with check_row_masks():
        (first,) = torch.autograd.grad(unchecked, weight, grad)
        (second,) = torch.autograd.grad(forward(), weight, grad * mask.unsqueeze(1))
        with check_row_masks():
            pass
        checked, elsewhere = forward(), []
        thread = threading.Thread(target=lambda: elsewhere.append(forward()))
        thread.start()
        thread.join()
    assert torch.equal(first, second)
    for out in (checked, *elsewhere):
        with pytest.raises(RuntimeError, match="got 1 of 1 masked rows"):
            torch.autograd.grad(out, weight, grad)
    torch.autograd.grad(forward(), weight, grad)


def test_a_frozen_weight_has_nothing_to_check():
    x = torch.ones(4, 2, requires_grad=True)
    with check_row_masks():
        out = rmm_linear(x, torch.ones(3, 2), config=RMMConfig(), row_mask=torch.tensor([True, False, False, False]))
    out.sum().backward()


@pytest.mark.parametrize("mode", ["exact", "sketch"])
def test_a_probe_measures_the_marked_rows(x, mode):
    """As it does in a model that is given nothing else."""
    model = Linear(WIDTH, 3)
    config = RMMConfig(rate=0.5)
    runs = []
    for given, mask in ((x, MASK), (x[MASK], None)):
        probe = GradientProbe(model, every=1, mode=mode)
        with probe, compress_activations(config, row_mask=mask):
            out = model(given)
            (out if mask is None else out * mask.unsqueeze(-1)).square().sum().backward()
        runs.append(probe.records[0])
    assert runs[0] == runs[1] and runs[0].num_rows == int(MASK.sum()) and runs[0].sketch_size == 12


def test_a_probe_passes_over_a_product_of_no_rows(x):
    model = Linear(WIDTH, 3)
    with GradientProbe(model, every=1) as probe, compress_activations(row_mask=torch.zeros_like(MASK)):
        (0 * model(x)).sum().backward()
    assert not probe.records


def test_checking_keeps_nothing_but_the_mask(x):
    weight = torch.randn(3, WIDTH, requires_grad=True)
    none = torch.zeros_like(MASK)
    with check_row_masks(), saved_tensors() as saved:
        rmm_linear(x, weight, config=RMMConfig(), row_mask=none)
    assert [tensor is none for tensor in saved] == [True]
