"""compress_activations reaches every spelling of the functions it knows, and changes nothing else."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from rmm_gnn import RMMConfig, compress_activations
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

ROWS, WIDTH, OUT = 64, 16, 8
CONFIG = RMMConfig(rate=0.25)
BITS, SEED, SKETCH, CODE = ROWS * WIDTH // 8, 8, CONFIG.saved_bytes(ROWS, WIDTH), None
torch.manual_seed(1)
WEIGHT, MATRIX = Parameter(torch.randn(OUT, WIDTH)), Parameter(torch.randn(WIDTH, OUT))
BIAS, GAMMA, BETA = Parameter(torch.randn(OUT)), Parameter(torch.rand(WIDTH) + 0.5), Parameter(torch.randn(WIDTH))
PARAMETERS = [WEIGHT, MATRIX, BIAS, GAMMA, BETA]
ADDED = torch.randn(ROWS, OUT)

# The call, and the bytes it keeps; CODE where they depend on a codec.
EXACT_GRADIENTS = {
    "F.relu": (F.relu, BITS),
    "F.relu(input=)": (lambda x: F.relu(input=x, inplace=False), BITS),
    "F.relu(inplace)": (lambda x: F.relu(x, inplace=True), BITS),
    "F.relu_": (F.relu_, BITS),
    "torch.relu": (torch.relu, BITS),
    "torch.relu(input=)": (lambda x: torch.relu(input=x), BITS),
    "torch.relu_": (torch.relu_, BITS),
    "Tensor.relu": (lambda x: x.relu(), BITS),
    "Tensor.relu_": (lambda x: x.relu_(), BITS),
    "nn.ReLU": (torch.nn.ReLU(), BITS),
    "nn.ReLU(inplace)": (torch.nn.ReLU(inplace=True), BITS),
    "F.leaky_relu": (F.leaky_relu, BITS),
    "F.leaky_relu(negative_slope=)": (lambda x: F.leaky_relu(input=x, negative_slope=0.3, inplace=True), BITS),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x, 0.3), BITS),
    "nn.LeakyReLU": (torch.nn.LeakyReLU(0.2), BITS),
    "F.linear": (lambda x: F.linear(x, WEIGHT), SKETCH),
    "F.linear(bias)": (lambda x: F.linear(x, WEIGHT, BIAS), SKETCH),
    "F.linear(input=)": (lambda x: F.linear(input=x, weight=WEIGHT, bias=BIAS), SKETCH),
    "F.linear 3-D": (lambda x: F.linear(x.view(4, -1, WIDTH), WEIGHT, BIAS), SKETCH),
    "torch.mm": (lambda x: torch.mm(x, MATRIX), SKETCH),
    "torch.mm(mat2=)": (lambda x: torch.mm(input=x, mat2=MATRIX), SKETCH),
    "Tensor.mm": (lambda x: x.mm(MATRIX), SKETCH),
    "torch.matmul": (lambda x: torch.matmul(x, MATRIX), SKETCH),
    "torch.matmul(other=)": (lambda x: torch.matmul(input=x, other=MATRIX), SKETCH),
    "Tensor.matmul": (lambda x: x.matmul(MATRIX), SKETCH),
    "x @ W": (lambda x: x @ MATRIX, SKETCH),
    "x @ W.T": (lambda x: x @ WEIGHT.T, SKETCH),
    "x @ W 3-D": (lambda x: x.view(4, -1, WIDTH) @ MATRIX, SKETCH),
    "torch.addmm": (lambda x: torch.addmm(BIAS, x, MATRIX), SKETCH),
    "torch.addmm(beta=)": (lambda x: torch.addmm(ADDED, x, MATRIX, beta=0.3, alpha=0.7), SKETCH),
    "torch.addmm(mat1=)": (lambda x: torch.addmm(input=BIAS, mat1=x, mat2=WEIGHT.t(), alpha=2), SKETCH),
    "Tensor.addmm": (lambda x: ADDED.addmm(x, MATRIX, beta=2), SKETCH),
    "Tensor.addmm(mat1=)": (lambda x: ADDED.addmm(mat1=x, mat2=MATRIX), SKETCH),
}
RANDOM = {
    "F.dropout": (F.dropout, SEED),
    "F.dropout(training=)": (lambda x: F.dropout(input=x, p=0.5, training=True, inplace=False), SEED),
    "F.dropout(inplace)": (lambda x: F.dropout(x, 0.5, True, True), SEED),
    "nn.Dropout": (torch.nn.Dropout(0.5), SEED),
    "nn.Dropout(inplace)": (torch.nn.Dropout(inplace=True), SEED),
}
ROUNDED_GRADIENTS = {
    "F.batch_norm": (lambda x: F.batch_norm(x, None, None, GAMMA, BETA, training=True), CODE),
    "F.batch_norm(running_mean=)": (
        lambda x: F.batch_norm(
            input=x, running_mean=torch.zeros(WIDTH), running_var=torch.ones(WIDTH), weight=GAMMA, bias=BETA,
            training=True, momentum=0.2, eps=1e-3,
        ),
        CODE,
    ),
    "nn.BatchNorm1d": (lambda x: torch.nn.BatchNorm1d(WIDTH)(x), CODE),
    "F.layer_norm": (lambda x: F.layer_norm(x, (WIDTH,), GAMMA, BETA), CODE),
    "F.layer_norm(normalized_shape=)": (
        lambda x: F.layer_norm(input=x, normalized_shape=[WIDTH], weight=GAMMA, bias=BETA, eps=1e-3),
        CODE,
    ),
    "nn.LayerNorm": (lambda x: torch.nn.LayerNorm(WIDTH)(x), CODE),
    "F.gelu": (F.gelu, CODE),
    "F.gelu(approximate=)": (lambda x: F.gelu(input=x, approximate="tanh"), CODE),
    "nn.GELU": (torch.nn.GELU("tanh"), CODE),
    "F.silu": (F.silu, CODE),
    "F.silu(inplace=)": (lambda x: F.silu(input=x, inplace=True), CODE),
    "nn.SiLU": (torch.nn.SiLU(), CODE),
    "F.elu": (F.elu, CODE),
    "F.elu(alpha=)": (lambda x: F.elu(input=x, alpha=0.5, inplace=True), CODE),
    "F.elu_": (lambda x: F.elu_(x, 0.5), CODE),
    "nn.ELU": (torch.nn.ELU(0.7), CODE),
}  # fmt: skip


def step(call, context, x=None):
    """Output, gradient of x, bytes kept besides x and parameters, and whether x itself was changed."""
    torch.manual_seed(3)
    x = torch.randn(ROWS, WIDTH, requires_grad=True) if x is None else x
    y = x * 1
    with context, saved_tensors() as saved:
        out = call(y)
    changed = y._version > 0
    seen = torch.rand(out.shape, generator=torch.Generator().manual_seed(0)).to(out.dtype)
    (grad,) = torch.autograd.grad((out * seen).sum(), x, retain_graph=True)
    kept = sum(kept_storages(saved, besides=[*PARAMETERS, y] if changed else PARAMETERS).values())
    return out.detach(), grad, kept, changed


def both(call, x=None):
    return step(call, contextlib.nullcontext(), x), step(call, compress_activations(CONFIG), x)


@pytest.mark.parametrize("name", EXACT_GRADIENTS)
def test_spellings_with_exact_output_and_gradient(name):
    call, kept = EXACT_GRADIENTS[name]
    stock, ours = both(call)
    assert torch.equal(ours[0], stock[0]) and ours[3] == stock[3]
    torch.testing.assert_close(ours[1], stock[1])
    assert ours[2] == kept


@pytest.mark.parametrize("name", ROUNDED_GRADIENTS)
def test_spellings_with_exact_output_and_rounded_gradient(name):
    call, _ = ROUNDED_GRADIENTS[name]
    stock, ours = both(call)
    assert torch.equal(ours[0], stock[0]) and ours[3] == stock[3]
    assert 0 < ours[2] < ROWS * WIDTH * 4 / 2.5
    assert torch.nn.functional.cosine_similarity(ours[1].flatten(), stock[1].flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", RANDOM)
def test_dropout_has_one_mask_in_both_passes(name):
    call, kept = RANDOM[name]
    x = torch.rand(ROWS, WIDTH).add_(1).requires_grad_()
    with compress_activations(CONFIG), saved_tensors() as saved:
        y = x * 1
        saved.clear()
        out = call(y)
    out.sum().backward()
    assert torch.equal(x.grad, torch.where(out == 0, 0.0, 2.0)) and 0.4 < (out == 0).float().mean() < 0.6
    assert (out is y) == ("inplace" in name)
    assert sum(tensor.nbytes for tensor in saved) == kept


@pytest.mark.parametrize("name", ["F.linear(bias)", "x @ W.T", "torch.addmm(beta=)"])
def test_weight_gradients_are_unbiased(name):
    call, _ = EXACT_GRADIENTS[name]
    x, seen = torch.randn(ROWS, WIDTH) + 1, torch.randn(ROWS, OUT)

    def grad() -> Tensor:
        return torch.autograd.grad((call(x) * seen).sum(), MATRIX if "addmm" in name else WEIGHT)[0]

    exact = grad()
    with compress_activations(CONFIG):
        assert_unbiased(grad, exact, draws=600)
