"""The output of fused attention is kept by attention: a product that reads it keeps nothing of its own."""

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm, memory_report
from rmm_gnn.functional.attention import is_kept_by_attention

BATCH, LENGTH, HEADS, SIZE = 3, 20, 2, 8
WIDTH = HEADS * SIZE
UNIT = BATCH * LENGTH * WIDTH * 4


class Attention(nn.Module):
    """Self-attention with heads split and joined as models do it."""

    def __init__(self, p=0.0, addmm=False):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.p, self.addmm = p, addmm

    def heads(self, x):
        q, k, v = (
            layer(x).view(BATCH, LENGTH, HEADS, SIZE).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p)

    def forward(self, x):
        joined = self.heads(x).transpose(1, 2).contiguous().reshape(BATCH, LENGTH, WIDTH)
        if self.addmm:
            return torch.addmm(self.out.bias, joined.view(-1, WIDTH), self.out.weight.t())
        return self.out(joined)


class InMode(nn.Module):
    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, x):
        with compress_activations(self.config):
            return self.model(x)


@pytest.fixture
def x():
    return torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0))


CONFIG = RMMConfig(rate=0.1)


@pytest.mark.parametrize("way", ["layers", "mode", "mode-addmm"])
def test_the_product_of_the_output_keeps_nothing(way, x):
    model = Attention(addmm=way.endswith("addmm"))
    model = convert_to_rmm(model, CONFIG) if way == "layers" else InMode(model, CONFIG)
    report = memory_report(model, x, loss_fn=torch.sum)
    attention = [entry for entry in report.entries if entry.operator == "scaled_dot_product_attention"]
    # q, k, v and the output, and a number for every query.
    assert sum(entry.saved_bytes for entry in attention) == 4 * UNIT + BATCH * LENGTH * HEADS * 4
    assert not [entry for entry in report.entries if entry.module.endswith("out") and entry.operator != "linear"]
    sketches = report.saved_bytes - sum(entry.saved_bytes for entry in attention)
    shared = 1 if way != "layers" else 3
    assert sketches == shared * CONFIG.saved_bytes(BATCH * LENGTH, WIDTH)


@pytest.mark.parametrize("way", ["layers", "mode", "mode-addmm"])
def test_its_weight_gradient_is_exact(way, x):
    torch.manual_seed(0)
    model = Attention(addmm=way.endswith("addmm"))
    model(x).square().sum().backward()
    exact = model.out.weight.grad.clone()
    model.zero_grad()
    wrapped = convert_to_rmm(model, CONFIG) if way == "layers" else InMode(model, CONFIG)
    wrapped(x).square().sum().backward()
    torch.testing.assert_close(model.out.weight.grad, exact)
    assert model.query.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_no_copy_either(dtype, x):
    model = convert_to_rmm(Attention(), CONFIG)
    with torch.autocast("cpu", dtype=dtype):
        joined = model.heads(x).transpose(1, 2).reshape(BATCH, LENGTH, WIDTH)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = model.out(joined)
    assert [t.data_ptr() for t in kept if t.numel() == joined.numel()] == [joined.data_ptr()]
    out.sum().backward()
    assert torch.isfinite(model.out.weight.grad).all()


def test_the_composite_path_and_copies_are_sketched(x):
    model = Attention()
    heads = model.heads(x).transpose(1, 2)
    assert is_kept_by_attention(heads.reshape(BATCH, LENGTH, WIDTH))
    assert not is_kept_by_attention(heads.clone())
    assert not is_kept_by_attention(heads * 1.0)
    assert not is_kept_by_attention(x)
    with sdpa_kernel(SDPBackend.MATH):
        assert not is_kept_by_attention(model.heads(x))
    assert not is_kept_by_attention(Attention(p=0.5).heads(x).transpose(1, 2).reshape(BATCH, LENGTH, WIDTH))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_redraws_what_follows(use_reentrant, x):
    """The product draws its seed in either pass, though only one of them finds a graph that leads to attention."""
    torch.manual_seed(0)
    model, after = convert_to_rmm(Attention(), CONFIG), nn.Dropout(0.5)
    x.requires_grad_()
    outs = []

    def block(x):
        outs.append(after(model(x)))
        return outs[-1]

    with torch.utils.checkpoint.set_checkpoint_early_stop(False):
        torch.utils.checkpoint.checkpoint(block, x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(outs[0], outs[1])
