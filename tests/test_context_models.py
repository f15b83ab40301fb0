"""compress_activations on layers and models of PyTorch Geometric as they come, beside converted ones, in training."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import BatchNorm1d, Module
from torch_geometric.nn import GAT, GCN, GATConv, GCN2Conv, GCNConv, GraphSAGE, SAGEConv

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm, memory_report
from rmm_gnn.nn import LeanGELU, RMMGCN2Conv
from tests.nn.recording import SeedRecorder, assert_unbiased, kept_storages, one_thread, saved_tensors

NODES, WIDTH, OUT = 48, 8, 4
CONFIG = RMMConfig(rate=0.5)
SKETCH = CONFIG.saved_bytes(NODES, WIDTH)


@pytest.fixture(autouse=True)
def small_products():
    with one_thread():
        yield


def graph(nodes: int = NODES) -> Tensor:
    torch.manual_seed(2)
    return torch.cat([torch.randint(nodes, (2, 3 * nodes)), torch.arange(nodes).expand(2, -1)], 1)


def features(nodes: int = NODES, width: int = WIDTH) -> Tensor:
    torch.manual_seed(4)
    return torch.rand(nodes, width)


class Residual(Module):
    """GCN2Conv with what it needs besides x."""

    def __init__(self, **arguments) -> None:
        super().__init__()
        self.conv = GCN2Conv(WIDTH, 0.3, **arguments)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x * 1, x * 1, edge_index)


def models() -> dict[str, functools.partial]:
    sizes = {"hidden_channels": WIDTH, "num_layers": 3, "out_channels": OUT}
    return {
        "GCN": functools.partial(GCN, WIDTH, **sizes),
        "GraphSAGE": functools.partial(GraphSAGE, WIDTH, **sizes),
        "GAT": functools.partial(GAT, WIDTH, heads=2, **sizes),
    }


LAYERS = {
    "GCN2Conv": functools.partial(Residual),
    "GCN2Conv theta": functools.partial(Residual, theta=0.5, layer=2),
    "GCN2Conv two weights": functools.partial(Residual, shared_weights=False),
    "GCN2Conv theta, two weights": functools.partial(Residual, theta=0.5, layer=2, shared_weights=False),
    "GCNConv": functools.partial(GCNConv, WIDTH, OUT),
    "SAGEConv": functools.partial(SAGEConv, WIDTH, OUT),
    "SAGEConv project": functools.partial(SAGEConv, WIDTH, OUT, project=True),
    "GATConv": functools.partial(GATConv, WIDTH, OUT, heads=2, residual=True),
}


def grads(model: Module, x: Tensor, edge_index: Tensor, loss=lambda out: (out * out.detach()).sum()) -> Tensor:
    """All gradients in one row, those of weights first seen first."""
    wanted = list(model.parameters())
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss(model(x, edge_index)), wanted)])


@pytest.mark.parametrize("name", [*LAYERS, *models()])
def test_gradients_of_unedited_layers_and_models_are_unbiased(name):
    torch.manual_seed(0)
    model, x, edge_index = {**LAYERS, **models()}[name](), features(), graph()
    exact = grads(model, x, edge_index)
    with compress_activations(CONFIG):
        assert_unbiased(lambda: grads(model, x, edge_index), exact, draws=60)


@pytest.mark.parametrize("name", [*LAYERS, *models()])
def test_outputs_and_gradients_of_the_input_are_exact(name):
    torch.manual_seed(0)
    model, edge_index = {**LAYERS, **models()}[name](), graph()
    results = []
    for config in (None, CONFIG):
        x = features().requires_grad_()
        if config is None:
            out = model(x, edge_index)
        else:
            with compress_activations(config):
                out = model(x, edge_index)
        out.square().sum().backward()
        results.append((out.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("name", models())
def test_the_ledger_of_unedited_models_before_and_after(name):
    nodes, width = 600, 32
    model = models()[name].func(width, hidden_channels=width, num_layers=3, dropout=0.5, norm="batch_norm")
    x, edge_index = features(nodes, width), graph(nodes)
    before = memory_report(model, x, edge_index)
    with compress_activations(RMMConfig(rate=0.1)):
        after = memory_report(model, x, edge_index)
        with saved_tensors() as saved:
            out = model(x, edge_index)
    given = [*model.parameters(), *model.buffers(), x, edge_index]
    assert sum(kept_storages(saved, besides=given).values()) == after.saved_bytes and out.requires_grad
    stock, ours = before.by_operator(), after.by_operator()
    known = {"relu", "leaky_relu", "dropout", "batch_norm", "linear"} & stock.keys()
    assert known >= {"dropout", "batch_norm"}
    unit = nodes * width * 4
    attention = 3 if name == "GAT" else 0  # layers with a leaky ReLU and dropout of a number for each edge
    assert ours["rmm_gnn.relu"] == 2 * nodes * width // 8 + attention * edge_index.shape[1] // 8
    assert ours["rmm_gnn.dropout"] == (2 + attention) * 8
    assert ours["rmm_gnn.batch_norm"] < 2 * unit / 8 and ours["rmm_gnn.linear_of_kept"] < 7 * unit * 0.11
    # What the layers do along the edges is not known here: it stays, and is listed.
    assert after.untouched() == {op: kept for op, kept in stock.items() if op not in known}
    assert sum(stock[op] for op in known) > 6 * after.compressed_bytes
    if name == "GraphSAGE":
        assert before.saved_bytes > 5 * after.saved_bytes


def test_autocast_keeps_and_returns_low_precision():
    model, edge_index = GCN(WIDTH, 2 * WIDTH, 2, OUT, norm="layer_norm"), graph()
    x = features().requires_grad_()
    results = []
    for context in (None, compress_activations(CONFIG)):
        with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors() as saved:
            if context is None:
                out = model(x, edge_index)
            else:
                with context:
                    out = model(x, edge_index)
        results.append((out.detach(), *torch.autograd.grad(out.float().sum(), [x, *model.parameters()])))
    assert results[0][0].dtype == results[1][0].dtype and torch.equal(results[0][0], results[1][0])
    assert [grad.dtype for grad in results[0]] == [grad.dtype for grad in results[1]]
    assert CONFIG.sketch_size(NODES) * WIDTH * 2 in [t.nbytes for t in saved if t.dtype == torch.bfloat16]
    torch.testing.assert_close(results[1][1], results[0][1], rtol=0.2, atol=0.2)


def test_converted_layers_are_left_as_they_are():
    class Model(Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act = torch.nn.Linear(WIDTH, WIDTH), LeanGELU(config=RMMConfig(act_codec="int8"))
            self.convs = torch.nn.ModuleList(GCN2Conv(WIDTH, 0.3, shared_weights=False) for _ in range(2))

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            x = x_0 = self.act(self.first(x))
            for conv in self.convs:
                x = F.relu(conv(x, x_0, edge_index))
            return x

    own = RMMConfig(rate=0.25)
    model, x, edge_index = convert_to_rmm(Model(), own), features(), graph()
    assert isinstance(model.convs[0], RMMGCN2Conv)
    alone = memory_report(model, x, edge_index)
    with compress_activations(CONFIG):
        inside = memory_report(model, x, edge_index)
        exact_x_0 = model.convs[0](x, x, edge_index)
    assert torch.equal(exact_x_0, model.convs[0](x, x, edge_index))
    # The configs of the layers count, x_0 is kept whole and once, and only the stock ReLU is another.
    unchanged = {name: kept for name, kept in alone.by_module().items() if name != "(model)"}
    assert {name: kept for name, kept in inside.by_module().items() if name != "(model)"} == unchanged
    assert alone.by_module()["(model)"] == 2 * NODES * WIDTH * 4
    assert inside.by_module()["(model)"] == 2 * NODES * WIDTH // 8
    assert alone.by_module()["convs.0"] - alone.by_module()["convs.1"] == NODES * WIDTH * 4


def test_several_steps_do_not_carry_a_graph_and_memory_does_not_grow():
    model = GCN(WIDTH, WIDTH, 3, OUT, dropout=0.3, norm=BatchNorm1d(WIDTH))
    x, edge_index, optimizer = features(), graph(), torch.optim.SGD(model.parameters(), lr=0.05)
    reference = GCN(WIDTH, WIDTH, 3, OUT, dropout=0.3, norm=BatchNorm1d(WIDTH))
    reference.load_state_dict(model.state_dict())
    losses = []
    with compress_activations(CONFIG):
        for _ in range(30):
            optimizer.zero_grad()
            loss = model(x, edge_index).add(-1).square().mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    norms = [module for module in model.modules() if isinstance(module, BatchNorm1d)]
    assert norms and all(norm.running_mean.grad_fn is None and norm.num_batches_tracked == 30 for norm in norms)
    # The statistics of the first layer's first batch are those of torch.
    with compress_activations(CONFIG):
        model.load_state_dict(reference.state_dict())
        torch.manual_seed(9)
        model(x, edge_index)
    torch.manual_seed(9)
    reference(x, edge_index)
    first = [next(m for m in each.modules() if isinstance(m, BatchNorm1d)) for each in (model, reference)]
    torch.testing.assert_close(first[0].running_var, first[1].running_var)


def test_evaluation_inside_is_exact_and_keeps_nothing():
    model, x, edge_index = GAT(WIDTH, WIDTH, 2, OUT, dropout=0.4, norm="batch_norm").eval(), features(), graph()
    expected = model(x, edge_index)
    with compress_activations(CONFIG), saved_tensors() as saved:
        with torch.no_grad():
            assert torch.equal(model(x, edge_index), expected)
        with torch.inference_mode():
            assert torch.equal(model(x, edge_index), expected)
        assert not saved
        assert torch.equal(model(x, edge_index), expected)
    with SeedRecorder() as recorder:
        model(x, edge_index)
    assert not recorder.forward
