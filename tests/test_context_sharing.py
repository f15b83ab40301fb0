"""Within compress_activations, linear layers that read one tensor at one rate share one sketch of it, for one step."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear, Module, ModuleList
from torch_geometric.nn import GATConv, SAGEConv, TransformerConv

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm, memory_report, rmm_linear
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

ROWS, WIDTH = 48, 8
CONFIG = RMMConfig(rate=0.25)
ONE = CONFIG.saved_bytes(ROWS, WIDTH)


class Attention(Module):
    """Three layers that read one tensor, as query, key and value do."""

    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.layers = ModuleList(Linear(WIDTH, WIDTH) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([layer(x) for layer in self.layers]).sum(0)


def kept(call, *besides: Tensor) -> int:
    with saved_tensors() as saved:
        out = call()
    return sum(kept_storages(saved, besides=besides).values()) * bool(out.requires_grad)


def kept_within(call, config: RMMConfig = CONFIG) -> int:
    with compress_activations(config):
        return kept(call)


def test_layers_that_read_one_tensor_keep_one_sketch():
    model, x = Attention(), torch.randn(ROWS, WIDTH)
    weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))
    assert kept_within(lambda: model(x)) == ONE
    assert kept_within(lambda: model(x) + x @ weight + torch.mm(x, weight.t())) == ONE
    assert kept_within(lambda: model(x) + rmm_linear(x, weight, config=CONFIG)) == ONE
    assert kept_within(lambda: model(x) + model.layers[0](x.clone())) == 2 * ONE
    assert kept_within(lambda: convert_to_rmm(Attention(), CONFIG)(x)) == ONE
    fused = torch.nn.Parameter(torch.randn(3 * WIDTH, WIDTH))
    assert kept_within(lambda: sum(F.linear(x, part) for part in fused.chunk(3))) == ONE


def test_rates_and_precisions_have_a_sketch_each():
    model, x = Attention(), torch.randn(ROWS, WIDTH)
    other = RMMConfig(rate=0.5)
    half = other.saved_bytes(ROWS, WIDTH)
    converted = convert_to_rmm(Attention(2), other)
    assert kept_within(lambda: model(x) + converted(x)) == ONE + half

    def in_both() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = model(x)
        return low + model(x)

    low = CONFIG.saved_bytes(ROWS, WIDTH, torch.bfloat16)
    assert kept_within(in_both) == ONE + low


def test_a_change_in_place_ends_the_sharing():
    first, second, x, seen = Linear(WIDTH, 4), Linear(WIDTH, 4), torch.rand(ROWS, WIDTH), torch.rand(ROWS, 4)

    def call() -> Tensor:
        y = x * 1
        return first(y) + second(y.mul_(2))

    def grad() -> Tensor:
        return torch.cat(torch.autograd.grad((call() * seen).sum(), [first.weight, second.weight]))

    exact = torch.cat([seen.t() @ x, seen.t() @ (2 * x)])
    assert kept_within(call) == 2 * ONE
    with compress_activations(CONFIG):
        assert_unbiased(grad, exact, draws=300)


def test_contexts_do_not_share():
    model, x = Attention(2), torch.randn(ROWS, WIDTH)

    def nested() -> Tensor:
        out = model(x)
        with compress_activations(CONFIG):
            return out + model(x)

    assert kept_within(nested) == 2 * ONE
    mode = compress_activations(CONFIG)

    def twice() -> Tensor:
        out = 0
        for _ in range(2):
            with mode:
                out = out + model(x)
        return out

    assert kept(twice) == 2 * ONE


def test_a_layer_that_reads_a_tensor_again_has_a_fresh_sketch():
    model, x, seen = Attention(2), torch.rand(ROWS, WIDTH), torch.rand(ROWS, WIDTH)
    wanted = [layer.weight for layer in model.layers]
    graphs = []
    with compress_activations(CONFIG):
        assert kept(lambda: model(x) + model(x)) == 2 * ONE
        for _ in range(3):
            graphs.append((model(x) * seen).sum())  # alive, so the sketches are too
        grads = [torch.autograd.grad(graph, wanted) for graph in graphs]
    assert len({grad.sum().item() for pair in grads for grad in pair}) == 3, "one S for each step, two layers share it"
    assert all(torch.equal(*pair) for pair in grads)


@pytest.mark.parametrize("keep_graph", [False, True])
def test_gradients_of_layers_that_share_are_unbiased_in_one_long_context(keep_graph):
    model, x, seen = Attention(), torch.rand(ROWS, WIDTH), torch.rand(ROWS, WIDTH)
    wanted, graphs = [layer.weight for layer in model.layers], []

    def grad() -> Tensor:
        loss = (model(x) * seen).sum()
        graphs.append(loss if keep_graph else None)
        return torch.cat(torch.autograd.grad(loss, wanted, retain_graph=keep_graph))

    exact = grad()
    with compress_activations(CONFIG):
        assert_unbiased(grad, exact, draws=300)


@pytest.mark.parametrize(
    ("conv", "sketches"),
    [
        (lambda: TransformerConv(WIDTH, WIDTH), 1),  # query, key, value and skip
        (lambda: GATConv(WIDTH, WIDTH, residual=True), 1),
        (lambda: SAGEConv(WIDTH, WIDTH, project=True), 2),  # x, and what was gathered
        (lambda: SAGEConv(WIDTH, WIDTH), 2),
    ],
)
def test_layers_of_pyg(conv, sketches):
    model, x, nodes = conv(), torch.randn(ROWS, WIDTH), torch.arange(ROWS)
    edge_index = torch.stack([nodes, (nodes + 1) % ROWS])
    with compress_activations(CONFIG):
        report = memory_report(model, x, edge_index)
    assert report.by_operator()["rmm_gnn.linear_of_kept"] == sketches * ONE


def test_sketches_do_not_outlive_their_step():
    model, x = Attention(), torch.randn(ROWS, WIDTH)
    mode = compress_activations(CONFIG)
    with mode:
        with saved_tensors() as saved:
            loss = model(x).sum()
        kept = [weakref.ref(tensor) for tensor in saved]
        saved.clear()
        loss.backward()
        assert not any(reference() is not None for reference in kept)
        loss = model(x).sum()
    reference = weakref.ref(mode)
    del mode
    gc.collect()
    assert reference() is None, "a graph must not hold the mode"
    loss.backward()


def test_nothing_grows_over_many_steps():
    def objects() -> int:
        gc.collect()
        return sum(type(item) in (Tensor, dict, set, weakref.ref) for item in gc.get_objects())

    model, x = Attention(), torch.randn(ROWS, WIDTH)
    with compress_activations(CONFIG):
        counts = {}
        for step in range(30):
            model(x.relu()).sum().backward()
            model(x).sum().backward()
            if step in (9, 29):
                counts[step] = objects()
    assert counts[29] - counts[9] < 10
