"""exact_activations reaches the functions that models call, and nothing else."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch_geometric.nn import GAT, GCN

from rmm_gnn.baselines.exact import ExactReLU, convert_to_exact, exact_activations
from tests.nn.recording import saved_tensors

EXACT_CALLS = {
    "F.relu": F.relu,
    "torch.relu": torch.relu,
    "Tensor.relu": torch.Tensor.relu,
    "F.relu inplace": lambda x: F.relu(x, inplace=True),
    "torch.relu_": torch.relu_,
    "Tensor.relu_": torch.Tensor.relu_,
    "F.relu by name": lambda x: F.relu(input=x),
    "F.leaky_relu": lambda x: F.leaky_relu(x, 0.3),
    "F.leaky_relu inplace": lambda x: F.leaky_relu(x, negative_slope=0.3, inplace=True),
    "F.dropout": lambda x: F.dropout(x, p=0.4),
    "F.dropout inplace": lambda x: F.dropout(x, 0.4, True, True),
    "nn.ReLU": torch.nn.ReLU(),
    "nn.ReLU inplace": torch.nn.ReLU(inplace=True),
    "nn.LeakyReLU": torch.nn.LeakyReLU(),
    "nn.Dropout": torch.nn.Dropout(0.3),
}
ROUNDED_CALLS = {
    "F.elu": F.elu,
    "F.elu inplace": lambda x: F.elu(x, 0.5, True),
    "nn.ELU": torch.nn.ELU(),
    "F.batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "nn.BatchNorm1d": torch.nn.BatchNorm1d(16, affine=False),
}


def step(call, context):
    """Output, gradient, and the bytes kept, of a call on a tensor that is not a leaf."""
    torch.manual_seed(3)
    x = torch.randn(32, 16, requires_grad=True)
    weights = torch.randn(32, 16)
    with context, saved_tensors() as saved:
        y = x + 1
        out = call(y)
    (grad,) = torch.autograd.grad((out * weights).sum(), x)
    return out.detach(), grad, saved, out is y


@pytest.mark.parametrize("name", EXACT_CALLS)
def test_masks_change_neither_value_nor_gradient(name):
    plain = step(EXACT_CALLS[name], contextlib.nullcontext())
    ours = step(EXACT_CALLS[name], exact_activations())
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1]) and ours[3] == plain[3]
    assert [tensor.nbytes for tensor in ours[2]] == [32 * 16 // 8]


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("name", ROUNDED_CALLS)
def test_inputs_are_rounded(name, bits):
    out, grad, saved, _ = step(ROUNDED_CALLS[name], exact_activations(bits))
    with torch.no_grad():
        torch.manual_seed(3)
        torch.testing.assert_close(out, ROUNDED_CALLS[name](torch.randn(32, 16) + 1))
    assert grad.isfinite().all()
    assert sum(tensor.nbytes for tensor in saved if tensor.dtype == torch.uint8) == 32 * 16 * bits // 8


def test_an_inplace_call_changes_its_argument():
    x = torch.randn(8, requires_grad=True)
    with exact_activations():
        y = x * 1
        assert y.relu_() is y
    assert torch.equal(y, x.detach().relu())


def test_a_leaf_cannot_be_changed_in_place():
    x = torch.randn(8, requires_grad=True)
    with exact_activations(), pytest.raises(RuntimeError, match="in-place operation"):
        x.relu_()


def test_calls_out_of_training_and_other_calls_pass():
    x = torch.randn(32, 16, requires_grad=True)
    mean, var = torch.zeros(16), torch.ones(16)
    state = torch.get_rng_state()
    with exact_activations(), saved_tensors() as saved:
        F.dropout(x, 0.5, training=False)
        F.batch_norm(x, mean, var)
        x.sigmoid()
        torch.relu(torch.arange(4))
    assert not any(tensor.dtype == torch.uint8 for tensor in saved)
    with exact_activations(), torch.no_grad(), saved_tensors() as saved:
        assert torch.equal(x.relu(), x.clamp(min=0))
    assert not saved and torch.equal(state, torch.get_rng_state())


def test_after_the_context_everything_is_as_before():
    for _ in range(2):
        with exact_activations():
            pass
    x = torch.randn(4, requires_grad=True)
    with saved_tensors() as saved:
        x.relu()
    assert saved[0].dtype == torch.float32


def test_layers_inside_the_context_and_backward_inside_it():
    x = torch.randn(32, 16, requires_grad=True)
    with exact_activations(), saved_tensors() as saved:
        out = ExactReLU()(x)
        out.sum().backward()
    assert len(saved) == 1 and torch.equal(x.grad, (x > 0).float())


@pytest.mark.parametrize("build", [GCN, GAT], ids=lambda build: build.__name__)
@pytest.mark.parametrize("norm", [None, "BatchNorm"])
def test_models_of_pyg_learn(build, norm):
    torch.manual_seed(0)
    model = build(8, 32, num_layers=3, out_channels=3, dropout=0.1, norm=norm)
    nodes = torch.arange(60)
    edges = torch.cat([torch.stack([nodes, (nodes + 3 * step) % 60]) for step in (1, 2, 18, 19)], 1)
    x, target = torch.randn(60, 8), nodes % 3
    convert_to_exact(model, 0.5, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        with exact_activations(4), saved_tensors() as saved:
            loss = F.cross_entropy(model(x, edges), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(tensor.dtype == torch.uint8 for tensor in saved) >= 7 + 2 * (norm is not None)
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0]


def test_other_bits_are_refused():
    with pytest.raises(ValueError, match=r"'bits' must be 1, 2, 4, 8 or None \(got 16\)"):
        exact_activations(16)
