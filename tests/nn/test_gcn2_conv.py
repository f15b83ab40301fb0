"""RMMGCN2Conv is torch_geometric.nn.GCN2Conv in everything but what it keeps."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
import torch_geometric.typing
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.nn import DeepGCNLayer, GCN2Conv
from torch_geometric.typing import SparseTensor
from torch_geometric.utils import to_undirected

from rmm_gnn import RMMConfig
from rmm_gnn.functional import shared_input_linear
from rmm_gnn.nn import RMMGCN2Conv
from tests.nn.recording import SeedRecorder, assert_unbiased, kept_storages, saved_tensors

NODES, CHANNELS = 40, 8


def graph(weighted: bool = True) -> tuple[Tensor, Tensor]:
    """Edges both ways without self-loops, and weights that differ."""
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(NODES, (2, 120), generator=generator)
    edges = to_undirected(edges[:, edges[0] != edges[1]], num_nodes=NODES)
    size = edges.shape[1]
    return edges, torch.rand(size, generator=generator, dtype=torch.float64) + 0.5 if weighted else torch.ones(size)


def coo(dtype: torch.dtype) -> tuple:
    return (graph()[0],)


def weighted_coo(dtype: torch.dtype) -> tuple:
    edges, weight = graph()
    return edges, weight.to(dtype)


def edge_index(dtype: torch.dtype) -> tuple:
    return (EdgeIndex(graph()[0], sparse_size=(NODES, NODES)).sort_by("col").values,)


def weighted_edge_index(dtype: torch.dtype) -> tuple:
    edges, weight = graph()
    adjacency, order = EdgeIndex(edges, sparse_size=(NODES, NODES)).sort_by("col")
    return adjacency, weight[order].to(dtype)


def torch_coo(dtype: torch.dtype) -> tuple:
    edges, weight = graph()
    return (torch.sparse_coo_tensor(edges.flip(0), weight.to(dtype), (NODES, NODES), check_invariants=True).coalesce(),)


def torch_csr(dtype: torch.dtype) -> tuple:
    return (torch_coo(dtype)[0].to_sparse_csr(),)


def sparse_tensor(dtype: torch.dtype) -> tuple:
    edges, weight = graph()
    return (SparseTensor(row=edges[1], col=edges[0], value=weight.to(dtype), sparse_sizes=(NODES, NODES)),)


LAYOUTS: list[Callable[[torch.dtype], tuple]] = [
    coo,
    weighted_coo,
    edge_index,
    weighted_edge_index,
    torch_coo,
    torch_csr,
    *([sparse_tensor] if torch_geometric.typing.WITH_TORCH_SPARSE else []),
]
pytestmark = [
    pytest.mark.filterwarnings("ignore:Converting sparse tensor to CSR format"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]
every_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)


def twins(dtype: torch.dtype = torch.float64, *, config: RMMConfig | None = None, **arguments):
    """PyG's layer and ours with the same parameters."""
    torch.manual_seed(0)
    reference = GCN2Conv(CHANNELS, alpha=0.3, **arguments).to(dtype)
    layer = RMMGCN2Conv(CHANNELS, alpha=0.3, config=config or RMMConfig(rate=0.25), **arguments).to(dtype)
    layer.load_state_dict(reference.state_dict())
    return reference, layer


def features(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, x_0 = (torch.randn(NODES, CHANNELS, generator=generator, dtype=dtype) + 0.5 for _ in range(2))
    return x.requires_grad_(), x_0.requires_grad_()


def gradients(layer: GCN2Conv, x: Tensor, x_0: Tensor, adjacency: tuple, wanted: list[Tensor]) -> list[Tensor]:
    out = layer(x, x_0, *adjacency)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    return list(torch.autograd.grad((out * (target + out)).sum(), wanted))


def test_constructor_arguments_stand_at_their_place():
    theirs = list(inspect.signature(GCN2Conv.__init__).parameters.values())
    ours = list(inspect.signature(RMMGCN2Conv.__init__).parameters.values())
    plain = [(p.name, p.default, p.kind) for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [(p.name, p.default, p.kind) for p in ours[: len(plain)]] == plain
    assert [p.name for p in ours[len(plain) :]] == ["config", "rate", "sketch", "kwargs"]
    values = (CHANNELS, 0.2, 0.5, 3, False, True, False, False)
    names = ["channels", "alpha", "beta", "cached", "add_self_loops", "normalize"]
    reference, layer = GCN2Conv(*values), RMMGCN2Conv(*values, rate=0.1)
    assert [getattr(layer, name) for name in names] == [getattr(reference, name) for name in names]
    assert layer.weight2 is not None


def test_arguments_of_message_passing_are_passed_on():
    layer = RMMGCN2Conv(CHANNELS, 0.2, aggr="mean", flow="target_to_source", node_dim=-2)
    assert layer.aggr == "mean" and layer.flow == "target_to_source"
    with pytest.raises(TypeError, match="unknown"):
        RMMGCN2Conv(CHANNELS, 0.2, unknown=1)


@every_layout
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shared_weights", [True, False])
@pytest.mark.parametrize("depth", [{}, {"theta": 0.5, "layer": 2}], ids=["beta1", "theta"])
@pytest.mark.parametrize("anchor", [False, True], ids=["plain", "anchored"])
def test_outputs_and_exact_gradients_are_those_of_pyg(layout, normalize, shared_weights, depth, anchor):
    config = RMMConfig(rate=0.25, anchor=anchor)
    reference, layer = twins(config=config, normalize=normalize, shared_weights=shared_weights, **depth)
    adjacency = layout(torch.float64)
    x, x_0 = features()
    torch.testing.assert_close(layer(x, x_0, *adjacency), reference(x, x_0, *adjacency))

    exact = [[x, x_0, *([] if module.weight2 is None else [module.weight2])] for module in (reference, layer)]
    expected = gradients(reference, x, x_0, adjacency, exact[0])
    torch.testing.assert_close(gradients(layer, x, x_0, adjacency, exact[1]), expected)

    layer.config = RMMConfig(rate=1.0, anchor=anchor)
    expected = gradients(reference, x, x_0, adjacency, [reference.weight1])
    torch.testing.assert_close(gradients(layer, x, x_0, adjacency, [layer.weight1]), expected)
    assert torch.equal(layer.eval()(x, x_0, *adjacency), reference.eval()(x, x_0, *adjacency))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("layout", [weighted_coo, weighted_edge_index], ids=lambda layout: layout.__name__)
def test_gradient_of_the_edge_weights_is_exact(layout, normalize):
    reference, layer = twins(normalize=normalize, shared_weights=False)
    x, x_0 = features()
    edges, weight = layout(torch.float64)
    weight.requires_grad_()
    expected = gradients(reference, x, x_0, (edges, weight), [weight])
    torch.testing.assert_close(gradients(layer, x, x_0, (edges, weight), [weight]), expected)


@every_layout
@pytest.mark.parametrize("add_self_loops", [True, False])
def test_self_loops_are_added_as_in_pyg(layout, add_self_loops):
    reference, layer = twins(add_self_loops=add_self_loops)
    x, x_0 = features()
    adjacency = layout(torch.float64)
    torch.testing.assert_close(layer(x, x_0, *adjacency), reference(x, x_0, *adjacency))


@every_layout
def test_cache_is_filled_and_used_as_in_pyg(layout):
    reference, layer = twins(cached=True)
    x, x_0 = features()
    adjacency = layout(torch.float64)
    first = reference(x, x_0, *adjacency)
    torch.testing.assert_close(layer(x, x_0, *adjacency), first)
    for name in ("_cached_edge_index", "_cached_adj_t"):
        assert (getattr(layer, name) is None) == (getattr(reference, name) is None)
    # From now on the adjacency is not read: half the edges give what all of them gave.
    fewer = (adjacency[0][:, ::2],) if layout is coo else adjacency
    torch.testing.assert_close(layer(x, x_0, *fewer), first)
    assert torch.equal(layer.eval()(x, x_0, *fewer), reference.eval()(x, x_0, *fewer))
    layer.reset_parameters()
    assert layer._cached_edge_index is None and layer._cached_adj_t is None


def test_without_a_cache_a_new_graph_is_read():
    reference, layer = twins()
    x, x_0 = features()
    edges = graph()[0]
    layer(x, x_0, edges)
    torch.testing.assert_close(layer(x, x_0, edges[:, ::2]), reference(x, x_0, edges[:, ::2]))


def test_flow_against_the_edges():
    reference, layer = twins(flow="target_to_source")
    x, x_0 = features()
    edges, weight = graph()
    edges, weight = edges[:, ::3], weight[::3]
    torch.testing.assert_close(layer(x, x_0, edges, weight), reference(x, x_0, edges, weight))
    assert not torch.allclose(layer(x, x_0, edges, weight), layer(x, x_0, edges.flip(0), weight))


@pytest.mark.parametrize("aggr", ["mean", "max"])
def test_other_aggregations(aggr):
    reference, layer = twins(aggr=aggr, normalize=False)
    x, x_0 = features()
    torch.testing.assert_close(layer(x, x_0, graph()[0]), reference(x, x_0, graph()[0]))


@pytest.mark.parametrize("anchor", [False, True], ids=["plain", "anchored"])
@pytest.mark.parametrize("shared_weights", [True, False])
def test_initial_features_may_have_more_rows_than_the_layer(shared_weights, anchor):
    reference, layer = twins(shared_weights=shared_weights, config=RMMConfig(anchor=anchor))
    x, _ = features()
    x_0 = torch.randn(NODES + 7, CHANNELS, dtype=torch.float64, requires_grad=True)
    expected = gradients(reference, x, x_0, coo(torch.float64), [x, x_0])
    torch.testing.assert_close(gradients(layer, x, x_0, coo(torch.float64), [x, x_0]), expected)


@pytest.mark.parametrize("shared_weights", [True, False])
@pytest.mark.parametrize("depth", [{}, {"theta": 0.5, "layer": 2}], ids=["beta1", "theta"])
@pytest.mark.parametrize("anchor", [{}, {"anchor": True}, {"anchor": True, "x0_codec": "int4"}], ids=str)
def test_gradient_of_the_first_weight_is_unbiased(shared_weights, depth, anchor):
    config = RMMConfig(rate=0.5, **anchor)
    reference, layer = twins(config=config, shared_weights=shared_weights, normalize=False, **depth)
    nodes = torch.arange(400)
    rows = torch.stack([nodes, (nodes + 1) % 400])  # each node and its neighbour on a ring
    adjacency = (
        torch.sparse_csr_tensor(2 * torch.arange(401), rows.T.sort().values.flatten(), torch.ones(800).double()),
    )
    x, x_0 = (torch.randn(400, CHANNELS, dtype=torch.float64) for _ in range(2))
    (exact,) = gradients(reference, x, x_0, adjacency, [reference.weight1])
    assert_unbiased(lambda: gradients(layer, x, x_0, adjacency, [layer.weight1])[0], exact, draws=150)


@every_layout
@pytest.mark.parametrize("shared_weights", [True, False])
def test_the_inputs_of_the_caller_are_not_modified(layout, shared_weights):
    _, layer = twins(shared_weights=shared_weights)
    x, x_0 = features()
    before = x.detach().clone(), x_0.detach().clone()
    layer(x, x_0, *layout(torch.float64)).sum().backward()
    assert torch.equal(x, before[0]) and torch.equal(x_0, before[1])


@pytest.mark.parametrize("inner", [True, False], ids=["hidden", "first"])
@pytest.mark.parametrize("beta", [1.0, 0.25])
@pytest.mark.parametrize("shared_weights", [True, False])
def test_saved_bytes_are_the_documented_ones(shared_weights, beta, inner):
    config = RMMConfig(rate=0.1)
    layer = RMMGCN2Conv(CHANNELS, 0.3, shared_weights=shared_weights, normalize=False, config=config)
    layer.beta = beta
    nodes = 500
    adjacency = torch.eye(nodes).to_sparse_csr()
    x, x_0 = (torch.randn(nodes, CHANNELS, requires_grad=inner) for _ in range(2))
    with saved_tensors() as saved:
        layer(x, x_0, adjacency)
    kept = kept_storages(saved, besides=[*layer.parameters(), x_0])
    matrices = inner * (beta != 1.0) * (1 if shared_weights else 2)  # else the parameters themselves serve
    assert sum(kept.values()) == config.saved_bytes(nodes, CHANNELS) + matrices * 4 * CHANNELS**2

    of_x_0 = [tensor for tensor in saved if tensor.layout == torch.strided and tensor.data_ptr() == x_0.data_ptr()]
    assert len(of_x_0) == (not shared_weights)


@pytest.mark.parametrize("x0_codec", ["fp32", "int4"])
@pytest.mark.parametrize("beta", [1.0, 0.25])
@pytest.mark.parametrize("shared_weights", [True, False])
def test_saved_bytes_with_an_anchor(shared_weights, beta, x0_codec):
    """A fit of c x c, and x_0 or its code once for all layers, whether or not it has a weight of its own."""
    config = RMMConfig(rate=0.1, codec="int8", x0_codec=x0_codec, anchor=True)
    layers = [RMMGCN2Conv(CHANNELS, 0.3, shared_weights=shared_weights, config=config) for _ in range(3)]
    nodes = 500
    adjacency = torch.eye(nodes).to_sparse_csr()
    x, x_0 = (torch.randn(nodes, CHANNELS, requires_grad=True) for _ in range(2))
    with saved_tensors() as saved:
        h = x
        for layer in layers:
            layer.normalize, layer.beta = False, beta
            h = layer(h, x_0, adjacency)
    kept = kept_storages(saved, besides=[*(p for layer in layers for p in layer.parameters()), x_0])
    matrices = (beta != 1.0) * (1 if shared_weights else 2)  # else the parameters themselves serve
    each = config.saved_bytes(nodes, CHANNELS) + (1 + matrices) * 4 * CHANNELS**2
    assert sum(kept.values()) == 3 * each + (nodes * (CHANNELS // 2 + 4) if x0_codec == "int4" else 0)
    assert any(tensor is x_0 for tensor in saved) == (x0_codec == "fp32")


def test_a_frozen_first_weight_leaves_nothing_to_anchor():
    layer = RMMGCN2Conv(CHANNELS, 0.3, normalize=False, config=RMMConfig(anchor=True))
    layer.weight1.requires_grad_(False)
    x, x_0 = features(torch.float32)
    with saved_tensors() as saved:
        layer(x, x_0, *torch_csr(torch.float32))
    assert not any(tensor is x_0 for tensor in saved)


def test_pyg_keeps_two_matrices_where_ours_keeps_none():
    nodes = 500
    adjacency = torch.eye(nodes).to_sparse_csr()
    x, x_0 = (torch.randn(nodes, CHANNELS, requires_grad=True) for _ in range(2))
    full = []
    for module in (GCN2Conv, RMMGCN2Conv):
        layer = module(CHANNELS, 0.3, shared_weights=False, normalize=False)
        with saved_tensors() as saved:
            layer(x, x_0, adjacency)
        kept = kept_storages(saved, besides=[*layer.parameters(), x_0])
        full.append(sum(size >= x.nbytes for size in kept.values()))
    assert full == [2, 0]


def test_changing_a_kept_x_0_in_place_raises():
    _, layer = twins(shared_weights=False)
    x, x_0 = features()
    x_0 = x_0.detach()
    out = layer(x, x_0, *coo(torch.float64))
    x_0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_x_0_is_not_kept_with_shared_weights_and_may_be_changed():
    reference, layer = twins()
    x, x_0 = features()
    x_0 = x_0.detach()
    (expected,) = gradients(reference, x, x_0, coo(torch.float64), [x])
    out = layer(x, x_0, *coo(torch.float64))
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    x_0.mul_(2)
    (actual,) = torch.autograd.grad((out * (target + out)).sum(), x)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("frozen", [("weight1",), ("weight2",), ("weight1", "weight2")], ids="+".join)
def test_frozen_weights_get_no_gradient_and_the_rest_is_right(frozen):
    reference, layer = twins(shared_weights=False)
    for module in (reference, layer):
        for name in frozen:
            getattr(module, name).requires_grad_(False)
    x, x_0 = features()
    adjacency = torch_csr(torch.float64)
    before = torch.get_rng_state()
    with saved_tensors() as saved, SeedRecorder() as seeds:
        out = layer(x, x_0, *adjacency)
    assert len(seeds.forward) == ("weight1" not in frozen)
    if "weight1" in frozen:
        assert torch.equal(torch.get_rng_state(), before)
    kept = kept_storages(saved, besides=[*layer.parameters(), x_0])
    assert all(size < x.nbytes for size in kept.values())
    torch.testing.assert_close(out, reference(x, x_0, *adjacency))
    exact = {"weight1", "weight2"} - {"weight1", *frozen}
    expected = gradients(reference, x, x_0, adjacency, [x, x_0, *(getattr(reference, name) for name in exact)])
    actual = gradients(layer, x, x_0, adjacency, [x, x_0, *(getattr(layer, name) for name in exact)])
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("shared_weights", [True, False])
def test_state_dict_goes_both_ways(shared_weights):
    for source, target in (twins(shared_weights=shared_weights), twins(shared_weights=shared_weights)[::-1]):
        source.reset_parameters()
        names = ["weight1"] if shared_weights else ["weight1", "weight2"]
        assert list(source.state_dict()) == list(target.state_dict()) == names
        target.load_state_dict(source.state_dict())
        x, x_0 = features()
        adjacency = torch_csr(torch.float64)
        assert torch.equal(target.eval()(x, x_0, *adjacency), source.eval()(x, x_0, *adjacency))


def test_both_layers_draw_the_same_initial_weights():
    torch.manual_seed(3)
    reference = GCN2Conv(CHANNELS, 0.3, shared_weights=False)
    torch.manual_seed(3)
    layer = RMMGCN2Conv(CHANNELS, 0.3, shared_weights=False)
    assert torch.equal(layer.weight1, reference.weight1) and torch.equal(layer.weight2, reference.weight2)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("anchor", [False, True], ids=["plain", "anchored"])
def test_copies_train_on_their_own(duplicate, anchor):
    _, layer = twins(config=RMMConfig(rate=0.5, sketch="rademacher", anchor=anchor), cached=True)
    x, x_0 = features()
    layer(x, x_0, *coo(torch.float64))
    clone = duplicate(layer)
    assert clone.config == layer.config and repr(clone) == repr(layer)
    torch.manual_seed(4)
    expected = gradients(layer, x, x_0, coo(torch.float64), [layer.weight1])
    torch.manual_seed(4)
    assert torch.equal(gradients(clone, x, x_0, coo(torch.float64), [clone.weight1])[0], expected[0])


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"rate": 0.1}, "RMMGCN2Conv(16, alpha=0.1, beta=1.0, rate=0.1)"),
        ({"theta": 0.5, "layer": 1}, "RMMGCN2Conv(16, alpha=0.1, beta=0.4054651081081644, rate=0.1)"),
        ({"sketch": "sors"}, "RMMGCN2Conv(16, alpha=0.1, beta=1.0, rate=0.1, sketch='sors')"),
        ({"config": RMMConfig(anchor=True)}, "RMMGCN2Conv(16, alpha=0.1, beta=1.0, rate=0.1, anchor=True)"),
    ],
)
def test_repr_is_that_of_pyg_with_the_config(settings, shown):
    layer = RMMGCN2Conv(16, alpha=0.1, **settings)
    assert repr(layer) == shown
    plain = {name: value for name, value in settings.items() if name in ("theta", "layer")}
    assert repr(layer).startswith(f"RMM{GCN2Conv(16, alpha=0.1, **plain)!r}"[:-1])


def test_wrong_settings_raise_in_the_constructor():
    with pytest.raises(ValueError, match="'config' must be given alone"):
        RMMGCN2Conv(4, 0.1, config=RMMConfig(), rate=0.1)
    with pytest.raises(TypeError, match="'config' must be an RMMConfig"):
        RMMGCN2Conv(4, 0.1, config=0.1)
    with pytest.raises(TypeError, match="positional argument"):
        RMMGCN2Conv(4, 0.1, None, None, True, False, True, True, RMMConfig())


@pytest.mark.parametrize("anchor", [False, True], ids=["plain", "anchored"])
@pytest.mark.parametrize("block", ["res+", "res", "dense", "plain"])
def test_deep_gcn_layer_with_checkpointing_gives_the_gradients_without(block, anchor):
    config = RMMConfig(rate=0.25, anchor=anchor)
    # PyG checkpoints reentrantly: the first pass runs without grad, the recomputation must redraw the same S.
    results = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        layers = [
            DeepGCNLayer(
                RMMGCN2Conv(CHANNELS, 0.3, shared_weights=False, config=config), block=block, ckpt_grad=checkpointed
            )
            for _ in range(1 if block == "dense" else 2)
        ]
        x, x_0 = features(torch.float32)
        steps = []
        torch.manual_seed(1)
        for _ in range(2):
            out = x
            for layer in layers:
                out = layer(out, x_0, *torch_csr(torch.float32))
            parameters = [x_0, *(weight for layer in layers for weight in layer.parameters())]
            for tensor in parameters:
                tensor.grad = None
            out.square().sum().backward()
            steps.append([tensor.grad for tensor in parameters])
        results.append(steps)
        assert not torch.equal(steps[0][1], steps[1][1]), "both steps drew the same S"
    for plain, recomputed in zip(*results, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("anchor", [False, True], ids=["plain", "anchored"])
def test_under_autocast_all_layers_share_one_x_0(anchor):
    """PyG's layer keeps a converted copy of the scaled x_0 in each; ours refers to the one that the model holds."""
    torch.manual_seed(0)
    config = RMMConfig(rate=0.1, anchor=anchor)
    convs = [RMMGCN2Conv(8, 0.5, shared_weights=False, normalize=False, config=config) for _ in range(4)]
    edges = torch.arange(100).repeat(2, 1)
    x_0 = torch.randn(100, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16), saved_tensors() as saved:
        x = x_0
        for conv in convs:
            x = conv(x, x_0, edges)
    kept = kept_storages(saved, besides=[edges])
    full = {address for address, size in kept.items() if size >= 100 * 8 * 2}
    assert full == {x_0.untyped_storage().data_ptr()}

    x.float().square().sum().backward()
    ours = [x_0.grad.clone(), *(conv.weight2.grad.clone() for conv in convs)]
    x_0.grad = None
    for conv in convs:
        conv.zero_grad()
    x = x_0
    for conv in convs:
        x = conv(x, x_0, edges)
    x.square().sum().backward()
    for low, exact in zip(ours, [x_0.grad, *(conv.weight2.grad for conv in convs)], strict=True):
        assert low.dtype == torch.float32
        assert (low - exact).norm() < 0.05 * exact.norm()


def test_shared_input_under_autocast_refuses_double_backward_and_honours_what_is_needed():
    x, weight = torch.randn(9, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = shared_input_linear(x, weight)
        only_weight = shared_input_linear(x.detach(), weight)
    assert out.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(out.float().square().sum(), x, create_graph=True)
    only_weight.float().sum().backward()
    assert x.grad is None and weight.grad is not None
