"""Lean modules under torch.compile: one graph, the eager values, fresh masks, masks that agree with the gradient."""

import pytest
import torch

from rmm_gnn import RMMConfig, convert_to_rmm
from rmm_gnn.nn import (
    LeanBatchNorm1d,
    LeanDropout,
    LeanELU,
    LeanGELU,
    LeanLayerNorm,
    LeanReLU,
    LeanReLUDropout,
    LeanRMSNorm,
)

BACKENDS = ["aot_eager", "inductor"]
LOSSLESS = RMMConfig(rate=1.0, norm_codec="fp32", act_codec="fp32")


def block():
    return torch.nn.Sequential(
        torch.nn.Linear(12, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.LayerNorm(16), torch.nn.GELU(),
        torch.nn.RMSNorm(16),
    )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compiled_lean_block_equals_the_stock_one(backend):
    torch.manual_seed(0)
    stock = block()
    torch.manual_seed(0)
    lean = convert_to_rmm(block(), LOSSLESS, lean=True)
    compiled = torch.compile(lean, backend=backend, fullgraph=True)
    x = torch.randn(40, 12)
    for _ in range(3):
        for model in (stock, compiled):
            model(x).square().sum().backward()
    for one, other in zip(stock.parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lean[1].running_var, stock[1].running_var)
    assert not lean[1].running_mean.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("module", [LeanDropout(0.4), LeanReLUDropout(0.4)], ids=["dropout", "relu_dropout"])
def test_compiled_masks_are_fresh_and_backward_uses_the_forward_one(module, backend):
    compiled = torch.compile(torch.nn.Sequential(module, torch.nn.Identity()), backend=backend, fullgraph=True)
    masks = []
    for _ in range(3):
        x = torch.ones(500, 4, requires_grad=True)
        out = compiled(x)
        out.sum().backward()
        assert torch.equal(out.detach(), x.grad)
        masks.append(out.detach() != 0)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])
    assert abs(torch.stack(masks).float().mean() - 0.6) < 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_compiled_dropouts_of_one_input_draw_two_masks(backend):
    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = LeanDropout(0.5), LeanDropout(0.5)

        def forward(self, x):
            return self.one(x), self.other(x)

    one, other = torch.compile(Both(), backend=backend, fullgraph=True)(torch.ones(1000, requires_grad=True))
    assert not torch.equal(one, other)


SKETCHED = LeanBatchNorm1d(8, config=RMMConfig(norm_rate=0.3, norm_codec="fp32"))


@pytest.mark.parametrize(
    "module",
    [LeanGELU(), LeanELU(), LeanReLU(), LeanLayerNorm(8), LeanRMSNorm(8), LeanBatchNorm1d(8), SKETCHED],
    ids=repr,
)
def test_compiled_rounding_is_fresh_at_every_step(module):
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    grads = [torch.autograd.grad((compiled(x) * weights).sum(), x)[0] for _ in range(2)]
    # ReLU rounds nothing: its two gradients must agree, which shows that the others differ by rounding alone.
    assert torch.equal(*grads) == isinstance(module, LeanReLU)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_batch_norm_sketches_as_the_eager_one_for_any_number_of_rows(backend):
    """One graph whose rows are a symbol; the same seeds give the eager gradients."""
    compiled = torch.compile(SKETCHED, backend=backend, fullgraph=True, dynamic=True)
    for rows in (64, 50, 7):
        x = torch.randn(rows, 8, requires_grad=True)
        weights = torch.randn(rows, 8)
        grads = []
        for module in (compiled, SKETCHED):
            torch.manual_seed(rows)
            grads.append(torch.autograd.grad((module(x) * weights).sum(), (x, SKETCHED.weight)))
        torch.testing.assert_close(*grads)
