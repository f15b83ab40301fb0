"""ExactGCN2Conv is PyG's layer in everything but what it keeps; a block of the network keeps the paper's bytes."""

from __future__ import annotations

import copy
import inspect
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import GCN2Conv

from rmm_gnn.baselines.exact import ExactGCN2Conv, convert_to_exact, exact_activations
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

NODES, CHANNELS = 40, 8
SETTINGS = [
    {"shared_weights": shared, **depth} for shared in (True, False) for depth in ({}, {"theta": 0.5, "layer": 2})
]


def edges() -> Tensor:
    nodes = torch.arange(NODES)
    return torch.cat([torch.stack([nodes, (nodes + step) % NODES]) for step in (1, 5, NODES - 1, NODES - 5)], 1)


def csr(size: int = NODES, dtype: torch.dtype = torch.float64) -> Tensor:
    """Each node takes in itself and the next one."""
    nodes = torch.arange(size)
    pairs = torch.cat([torch.stack([nodes, nodes]), torch.stack([nodes, (nodes + 1) % size])], 1)
    values = torch.full((2 * size,), 0.5, dtype=dtype)
    return torch.sparse_coo_tensor(pairs, values, (size, size), check_invariants=True).to_sparse_csr()


def twins(kept_frac=0.5, bits=2, **arguments):
    """PyG's layer and ours with the same parameters."""
    torch.manual_seed(0)
    reference = GCN2Conv(CHANNELS, 0.3, **arguments).double()
    layer = ExactGCN2Conv(CHANNELS, 0.3, kept_frac=kept_frac, bits=bits, **arguments).double()
    layer.load_state_dict(reference.state_dict())
    return reference, layer


def features(rows=NODES):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows, CHANNELS, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2)]


def gradients(layer, x, x_0, adjacency, wanted):
    out = layer(x, x_0, adjacency)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    return torch.autograd.grad((out * (target + out)).sum(), wanted)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("adjacency", [edges(), csr()], ids=["coo", "csr"])
def test_outputs_and_gradients_are_those_of_pyg(settings, normalize, adjacency):
    reference, layer = twins(normalize=normalize, **settings)
    x, x_0 = features()
    torch.testing.assert_close(layer(x, x_0, adjacency), reference(x, x_0, adjacency))
    expected = gradients(reference, x, x_0, adjacency, [x, x_0])
    torch.testing.assert_close(gradients(layer, x, x_0, adjacency, [x, x_0]), expected)

    reference, layer = twins(kept_frac=1.0, bits=None, normalize=normalize, **settings)
    expected = gradients(reference, x, x_0, adjacency, list(reference.parameters()))
    torch.testing.assert_close(gradients(layer, x, x_0, adjacency, list(layer.parameters())), expected)
    assert torch.equal(layer.eval()(x, x_0, adjacency), reference.eval()(x, x_0, adjacency))


@pytest.mark.parametrize("settings", SETTINGS[1:3], ids=str)
def test_gradients_of_the_weights_are_unbiased(settings):
    reference, layer = twins(kept_frac=0.75, bits=4, normalize=False, **settings)
    (x, x_0), adjacency = features(), csr()
    exact = torch.cat(gradients(reference, x, x_0, adjacency, list(reference.parameters())))
    assert_unbiased(lambda: torch.cat(gradients(layer, x, x_0, adjacency, list(layer.parameters()))), exact, draws=2000)


def test_every_product_and_every_step_has_a_projection_of_its_own():
    """With alpha = 1/2, equal inputs and equal weights, only the projections of the two products differ."""
    layer = ExactGCN2Conv(CHANNELS, 0.5, shared_weights=False, normalize=False, bits=None)
    x = torch.randn(NODES, CHANNELS)
    eye = torch.eye(NODES).to_sparse_csr()
    grads = [
        grad for _ in range(2) for grad in torch.autograd.grad(layer(x, x, eye).sum(), (layer.weight1, layer.weight2))
    ]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(grads, 2))


@pytest.mark.parametrize("frozen", [("weight1",), ("weight2",), ("weight1", "weight2")], ids="+".join)
def test_frozen_weights_get_no_gradient_and_keep_nothing_of_their_input(frozen):
    layer = ExactGCN2Conv(CHANNELS, 0.5, shared_weights=False, normalize=False)
    for name in frozen:
        getattr(layer, name).requires_grad_(False)
    x = torch.randn(NODES, CHANNELS, requires_grad=True)
    state = torch.get_rng_state()
    with saved_tensors() as saved:
        out = layer(x, x, csr(dtype=torch.float32))
    assert torch.equal(state, torch.get_rng_state()) == (len(frozen) == 2)
    trained = 2 - len(frozen)
    kept = kept_storages(saved, besides=layer.parameters())
    assert sum(kept.values()) == trained * layer.config.saved_bytes(NODES, CHANNELS)
    out.sum().backward()
    assert all((getattr(layer, name).grad is None) == (name in frozen) for name in ("weight1", "weight2"))


def test_the_inputs_of_the_caller_are_not_modified():
    _, layer = twins(shared_weights=False)
    x, x_0 = features()
    before = x.detach().clone(), x_0.detach().clone()
    layer(x, x_0, csr()).sum().backward()
    assert torch.equal(x, before[0]) and torch.equal(x_0, before[1])


def test_cache_is_filled_and_used_as_in_pyg():
    reference, layer = twins(cached=True)
    x, x_0 = features()
    first = reference(x, x_0, edges())
    torch.testing.assert_close(layer(x, x_0, edges()), first)
    torch.testing.assert_close(layer(x, x_0, edges()[:, ::2]), first)


def test_constructor_arguments_stand_at_their_place_and_copies_work():
    plain = [
        [(p.name, p.default) for p in inspect.signature(kind.__init__).parameters.values()]
        for kind in (GCN2Conv, ExactGCN2Conv)
    ]
    theirs, ours = plain
    assert ours[: len(theirs) - 1] == theirs[:-1]
    layer = ExactGCN2Conv(CHANNELS, 0.2, 0.5, 3, False, normalize=False, kept_frac=0.5, bits=4)
    for clone in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (
            repr(clone) == repr(layer) == "ExactGCN2Conv(8, alpha=0.2, beta=0.15415067982725836, kept_frac=0.5, bits=4)"
        )
        assert clone.config == layer.config


class Block(torch.nn.Module):
    """One block of the ogbn-arxiv network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = GCN2Conv(channels, 0.5, shared_weights=False, normalize=False)
        self.norm = torch.nn.BatchNorm1d(channels)

    def forward(self, x: Tensor, x_0: Tensor, adjacency: Tensor) -> Tensor:
        return F.dropout((self.norm(self.conv(x, x_0, adjacency)) + x).relu(), 0.1, self.training)


def kept_by_a_block(nodes: int, channels: int, kept_frac: float, bits: int) -> int:
    block = convert_to_exact(Block(channels), kept_frac, bits)
    x, x_0 = (torch.randn(nodes, channels, requires_grad=True) for _ in range(2))
    with saved_tensors() as saved, exact_activations(bits):
        out = block(x, x_0, csr(nodes, torch.float32))
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in block.parameters())
    return sum(kept_storages(saved, besides=block.parameters()).values())


@pytest.mark.parametrize(
    ("kept_frac", "bits", "row_bytes"),
    [
        # Two products of 32 features, BatchNorm's input, and two masks.
        (0.125, 2, 2 * (8 + 8) + (64 + 8) + 32 + 32),
        (0.125, 8, 2 * (32 + 8) + (256 + 8) + 32 + 32),
        (0.125, 1, 2 * (4 + 8) + (32 + 8) + 32 + 32),
        (1.0, 2, 2 * (64 + 8) + (64 + 8) + 32 + 32),
    ],
)
def test_bytes_of_a_block_of_256_channels(kept_frac, bits, row_bytes):
    seeds, statistics = 2 * 8, 2 * 4 * 256
    for nodes in (64, 200):
        assert kept_by_a_block(nodes, 256, kept_frac, bits) == row_bytes * nodes + seeds + statistics


def test_the_published_setting_keeps_168_bytes_a_node():
    kept = kept_by_a_block(264, 256, 0.125, 2) - kept_by_a_block(64, 256, 0.125, 2)
    assert kept == 168 * 200


def test_bytes_of_a_width_that_fills_no_byte():
    # 3 of 10 features in 2 bits are 1 byte, 10 in 2 bits are 3; the masks run over all entries: 10 nodes, 100 bits.
    kept = kept_by_a_block(10, 10, 0.25, 2)
    assert kept == 10 * (2 * (1 + 8) + (3 + 8)) + 2 * 13 + 2 * 8 + 2 * 4 * 10
