"""convert_to_rmm and revert_rmm change what layers keep and nothing else."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import Module, Sequential
from torch.nn.parameter import UninitializedParameter
from torch_geometric.nn import (
    GAT,
    GCN,
    GATConv,
    GATv2Conv,
    GCN2Conv,
    GCNConv,
    GINConv,
    GraphSAGE,
    Linear,
    SAGEConv,
    TransformerConv,
)

from rmm_gnn import RMMConfig, convert_to_rmm, revert_rmm
from rmm_gnn.nn import RMMGCN2Conv, RMMLinear, RMMTorchLinear
from tests.nn.recording import SeedRecorder, one_thread

CONFIG = RMMConfig(rate=0.25)
NODES = 40


@pytest.fixture(autouse=True)
def small_products():
    with one_thread():
        yield


def edges() -> Tensor:
    nodes = torch.arange(NODES)
    return torch.cat([torch.stack([nodes, (nodes + step) % NODES]) for step in (1, 3, NODES - 1, NODES - 3)], 1)


class GCN2(Module):
    """One layer of each kind that is swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(8, 16)
        self.convs = torch.nn.ModuleList(GCN2Conv(16, 0.5, cached=True, shared_weights=False) for _ in range(2))
        self.head = Linear(16, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = x_0 = self.embed(x).relu()
        for conv in self.convs:
            x = conv(x, x_0, adjacency).relu()
        return self.head(x)


@pytest.fixture
def model() -> GCN2:
    torch.manual_seed(0)
    return GCN2()


def mlp() -> Sequential:
    torch.manual_seed(0)
    return Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def classes(model: Module) -> dict[str, type[Module]]:
    return {name: type(module) for name, module in model.named_modules()}


def test_every_kind_is_swapped_and_the_same_model_comes_back(model):
    parameters = dict(model.named_parameters())
    keys = list(model.state_dict())
    assert convert_to_rmm(model, CONFIG) is model
    assert isinstance(model.embed, RMMTorchLinear) and isinstance(model.head, RMMLinear)
    assert all(type(conv) is RMMGCN2Conv for conv in model.convs)
    assert all(layer.config == CONFIG for layer in (model.embed, *model.convs, model.head))
    assert list(model.state_dict()) == keys
    after = dict(model.named_parameters())
    assert list(after) == list(parameters) and all(after[name] is parameters[name] for name in parameters)


def test_conversion_does_not_touch_the_generator(model):
    before = torch.get_rng_state()
    convert_to_rmm(model, CONFIG)
    assert torch.equal(torch.get_rng_state(), before)


def test_outputs_stay_and_every_swapped_layer_sketches(model):
    x = torch.randn(NODES, 8)
    training, evaluated = model(x, edges()), model.eval()(x, edges())
    convert_to_rmm(model, CONFIG)
    assert torch.equal(model(x, edges()), evaluated)
    with SeedRecorder() as seeds:
        out = model.train()(x, edges())
        out.sum().backward()
    torch.testing.assert_close(out, training)
    assert len(set(seeds.forward)) == 4 and set(seeds.backward) == set(seeds.forward)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_converted_layer_is_one_that_was_constructed(model):
    convert_to_rmm(model, CONFIG)
    for converted, made in (
        (model.embed, RMMTorchLinear(8, 16, config=CONFIG)),
        (model.head, RMMLinear(16, 3, config=CONFIG)),
        (model.convs[0], RMMGCN2Conv(16, 0.5, cached=True, shared_weights=False, config=CONFIG)),
    ):
        assert repr(converted) == repr(made)
        assert set(vars(converted)) - set(vars(made)) == set()
        assert set(vars(made)) - set(vars(converted)) == set()


def test_mode_and_cached_adjacency_stay(model):
    model.eval()(torch.randn(NODES, 8), edges())
    cache = model.convs[0]._cached_edge_index
    convert_to_rmm(model, CONFIG)
    assert cache is not None and model.convs[0]._cached_edge_index is cache
    assert not any(module.training for module in model.modules())


def test_an_optimizer_made_before_goes_on_stepping_the_same_parameters(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(NODES, 8)
    model(x, edges()).square().mean().backward()
    optimizer.step()
    convert_to_rmm(model, CONFIG)
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    model(x, edges()).square().mean().backward()
    optimizer.step()
    assert all(not torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(optimizer.state[parameter]["step"] == 2 for parameter in model.parameters())


def test_tied_weights_stay_tied():
    model = Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    model[2].weight = model[0].weight
    convert_to_rmm(model, CONFIG)
    assert model[2].weight is model[0].weight and len(list(model.parameters())) == 3
    with SeedRecorder() as seeds:
        model(torch.randn(40, 8)).sum().backward()
    assert len(set(seeds.forward)) == 2


def test_a_layer_in_two_places_stays_one_layer():
    layer = torch.nn.Linear(8, 8)
    model = Sequential(layer, torch.nn.ReLU(), layer)
    convert_to_rmm(model, CONFIG)
    assert model[0] is layer and model[2] is layer and isinstance(layer, RMMTorchLinear)
    with SeedRecorder() as seeds:
        model(torch.randn(40, 8)).sum().backward()
    assert len(set(seeds.forward)) == 2
    revert_rmm(model)
    assert model[0] is layer and type(layer) is torch.nn.Linear


@pytest.mark.parametrize("build", [lambda: torch.nn.Linear(8, 4), lambda: Linear(8, 4)], ids=["torch", "pyg"])
def test_hooks_stay_and_fire(build):
    layer = build()
    fired = []
    handles = [
        layer.register_forward_pre_hook(lambda module, args: fired.append("pre")),
        layer.register_forward_hook(lambda module, args, out: fired.append("forward")),
        layer.register_full_backward_pre_hook(lambda module, grad: fired.append("backward_pre")),
        layer.register_full_backward_hook(lambda module, grad_in, grad_out: fired.append("backward")),
        layer.register_state_dict_pre_hook(lambda *args: fired.append("state_dict")),
        layer.weight.register_hook(lambda grad: fired.append("weight")),
    ]
    expected = ["pre", "forward", "backward_pre", "weight", "backward", "state_dict"]
    for change in (lambda layer: convert_to_rmm(layer, CONFIG), revert_rmm):
        change(layer)
        fired.clear()
        layer(torch.randn(40, 8, requires_grad=True)).sum().backward()
        layer.state_dict()
        assert sorted(fired) == sorted(expected)
    convert_to_rmm(layer, CONFIG)
    for handle in handles:
        handle.remove()
    fired.clear()
    layer(torch.randn(40, 8)).sum().backward()
    assert not fired


def test_hooks_of_message_passing_stay_and_fire(model):
    fired = []
    model.convs[0].register_propagate_forward_hook(lambda module, args, out: fired.append("propagate"))
    convert_to_rmm(model, CONFIG)
    model(torch.randn(NODES, 8), edges())
    assert fired == ["propagate"]


def test_converting_twice_is_converting_once(model):
    first = repr(convert_to_rmm(model, CONFIG))
    before = classes(model)
    assert repr(convert_to_rmm(model, CONFIG)) == first and classes(model) == before


def test_converting_again_takes_the_new_config(model):
    convert_to_rmm(model, CONFIG)
    other = RMMConfig(rate=0.5, sketch="sors")
    convert_to_rmm(model, {"convs.*": other})
    assert [layer.config for layer in (model.embed, *model.convs, model.head)] == [CONFIG, other, other, CONFIG]


def test_layers_made_directly_take_the_config_too():
    model = Sequential(RMMLinear(8, 8, rate=0.9), torch.nn.Linear(8, 8))
    convert_to_rmm(model, CONFIG)
    assert model[0].config == model[1].config == CONFIG


def test_revert_gives_back_classes_and_values(model):
    x = torch.randn(NODES, 8)
    before, shown, expected = classes(model), repr(model), model(x, edges())
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    parameters = list(model.parameters())
    convert_to_rmm(model, CONFIG)
    model(x, edges())
    assert revert_rmm(model) is model
    assert classes(model) == before and repr(model) == shown
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))
    assert torch.equal(model(x, edges()), expected)
    with SeedRecorder() as seeds:
        model(x, edges()).sum().backward()
    assert not seeds.forward


def test_revert_of_a_model_without_such_layers_changes_nothing(model):
    before = classes(model)
    assert classes(revert_rmm(model)) == before


def test_revert_turns_constructed_layers_into_what_they_stand_for():
    assert type(revert_rmm(RMMLinear(4, 4))) is Linear
    assert type(revert_rmm(RMMTorchLinear(4, 4))) is torch.nn.Linear
    assert type(revert_rmm(RMMGCN2Conv(4, 0.1))) is GCN2Conv


def test_the_first_pattern_that_matches_decides():
    low, high = RMMConfig(rate=0.1), RMMConfig(rate=0.5)
    model = convert_to_rmm(mlp(), {"0": low, "[0-3]": high, ".*": None})
    assert model[0].config == low and model[2].config == high
    assert type(model[4]) is torch.nn.Linear


def test_patterns_match_whole_names():
    model = Sequential(*(torch.nn.Linear(4, 4) for _ in range(12)))
    convert_to_rmm(model, {"1": CONFIG})
    assert [index for index, layer in enumerate(model) if isinstance(layer, RMMTorchLinear)] == [1]


def test_a_pattern_without_a_layer_raises_and_names_the_layers():
    model = mlp()
    with pytest.raises(ValueError, match=r"patterns that match a layer \(got 'decoder'\). Candidates are: 0, 2, 4"):
        convert_to_rmm(model, {"0": CONFIG, "decoder": None})
    assert type(model[0]) is torch.nn.Linear, "nothing may be swapped when the call fails"


def test_the_filter_sees_layer_and_name_and_selects():
    model = mlp()
    other = RMMConfig(rate=0.5)
    seen = {}

    def choose(module: Module, name: str) -> bool | RMMConfig:
        seen[name] = module
        return {"0": True, "2": False, "4": other}[name]

    convert_to_rmm(model, CONFIG, module_filter_fn=choose)
    assert seen == {"0": model[0], "2": model[2], "4": model[4]}
    assert model[0].config == CONFIG and type(model[2]) is Linear and model[4].config == other


def test_the_filter_is_keyword_only_and_can_overrule_a_mapping():
    with pytest.raises(TypeError, match="positional"):
        convert_to_rmm(mlp(), CONFIG, lambda module, name: True)
    model = convert_to_rmm(
        mlp(), {"[02]": CONFIG}, module_filter_fn=lambda module, name: CONFIG if name == "4" else name == "0"
    )
    assert isinstance(model[0], RMMTorchLinear) and type(model[2]) is Linear and isinstance(model[4], RMMTorchLinear)


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (lambda: Sequential(torch.nn.ReLU()), {}),
        (mlp, {"module_filter_fn": lambda module, name: False}),
        (lambda: torch.nn.Bilinear(4, 4, 4), {}),
    ],
    ids=["no-linear", "all-refused", "other-kind"],
)
def test_nothing_to_convert_raises(build, settings):
    with pytest.raises(ValueError, match="'model' must have a layer to convert"):
        convert_to_rmm(build(), CONFIG, **settings)


def test_a_mapping_that_leaves_all_exact_raises():
    with pytest.raises(ValueError, match=r"'model' must have a layer to convert \(got 3 candidates, none selected\)"):
        convert_to_rmm(mlp(), {".*": None})


@pytest.mark.parametrize("config", [0.1, None, "count_sketch"])
def test_wrong_configs_raise(config):
    with pytest.raises(TypeError, match="'config' must be an RMMConfig or a mapping"):
        convert_to_rmm(mlp(), config)


def test_wrong_configs_in_a_mapping_raise():
    with pytest.raises(TypeError, match=r"'config' must map patterns to an RMMConfig or None \(got float for '0'\)"):
        convert_to_rmm(mlp(), {"0": 0.1})


def test_a_forward_set_on_the_instance_raises_and_swaps_nothing():
    model = mlp()
    model[2].forward = lambda x: x
    with pytest.raises(ValueError, match=r"'2' must run its class's forward \(got forward set on the instance\)"):
        convert_to_rmm(model, CONFIG)
    assert type(model[0]) is torch.nn.Linear
    convert_to_rmm(model, CONFIG, module_filter_fn=lambda module, name: name != "2")
    assert isinstance(model[0], RMMTorchLinear) and type(model[2]) is Linear


def test_a_compiled_layer_raises():
    model = mlp()
    model[0].compile(backend="eager")
    with pytest.raises(ValueError, match="got _compiled_call_impl set on the instance"):
        convert_to_rmm(model, CONFIG)


@pytest.mark.parametrize(
    ("layer", "swapped"), [(torch.nn.Linear(8, 4), RMMTorchLinear), (Linear(8, 4), RMMLinear)], ids=["torch", "pyg"]
)
def test_a_single_layer_is_a_model(layer, swapped):
    assert type(convert_to_rmm(layer, CONFIG)) is swapped
    layer(torch.randn(40, 8)).sum().backward()
    assert layer.weight.grad is not None


def test_subclasses_are_left_alone():
    class Scaled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    attention = torch.nn.MultiheadAttention(8, 2)
    model = torch.nn.ModuleList([Scaled(8, 8), attention, torch.nn.Linear(8, 8)])
    projection = type(attention.out_proj)
    assert projection is not torch.nn.Linear and issubclass(projection, torch.nn.Linear)
    convert_to_rmm(model, CONFIG)
    assert [type(model[0]), type(attention.out_proj), type(model[2])] == [Scaled, projection, RMMTorchLinear]
    out, _ = attention(*(torch.randn(5, 1, 8) for _ in range(3)))
    out.sum().backward()


CONVS = {
    "gcn": (lambda: GCNConv(8, 8), {"lin"}),
    "sage": (lambda: SAGEConv(8, 8), {"lin_l", "lin_r"}),
    "sage_project": (lambda: SAGEConv(8, 8, project=True), {"lin", "lin_l", "lin_r"}),
    "gat": (lambda: GATConv(8, 4, heads=2), {"lin"}),
    "gatv2": (lambda: GATv2Conv(8, 4, heads=2), {"lin_l", "lin_r"}),
    "transformer": (
        lambda: TransformerConv(8, 4, heads=2, beta=True),
        {"lin_key", "lin_query", "lin_value", "lin_skip", "lin_beta"},
    ),
}


@pytest.mark.parametrize("name", CONVS)
def test_convolutions_are_covered_through_their_linear_layers(name):
    build, expected = CONVS[name]
    torch.manual_seed(0)
    conv = build()
    x = torch.randn(NODES, 8)
    before = conv(x, edges())
    convert_to_rmm(conv, CONFIG)
    assert {key for key, module in conv.named_modules() if type(module) is RMMLinear} == expected
    with SeedRecorder() as seeds:
        out = conv(x, edges())
        out.square().sum().backward()
    torch.testing.assert_close(out, before)
    assert len(set(seeds.forward)) == len(expected) and set(seeds.backward) == set(seeds.forward)
    assert all(parameter.grad is not None for parameter in conv.parameters())


def test_an_mlp_inside_a_convolution_is_covered():
    conv = GINConv(Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8)))
    convert_to_rmm(conv, {r"nn\.\d": CONFIG})
    assert isinstance(conv.nn[0], RMMTorchLinear) and isinstance(conv.nn[2], RMMTorchLinear)
    conv(torch.randn(NODES, 8), edges()).sum().backward()


@pytest.mark.parametrize("build", [GCN, GraphSAGE, GAT], ids=lambda build: build.__name__)
def test_models_of_pyg_train_after_conversion_also_lazy_ones(build):
    torch.manual_seed(0)
    model = build(-1, 16, num_layers=2, out_channels=3)
    assert any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters())
    convert_to_rmm(model, RMMConfig(rate=0.5))
    x, target = torch.randn(NODES, 8), torch.arange(NODES) % 3
    model(x, edges())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x, edges()), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_gcn2_learns_after_conversion(model):
    convert_to_rmm(model, RMMConfig(rate=0.5))
    x, target = torch.randn(NODES, 8), torch.arange(NODES) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x, edges()), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_converted_model_train_and_revert(model, duplicate):
    x = torch.randn(NODES, 8)
    convert_to_rmm(model, CONFIG)
    clone = duplicate(model)
    assert classes(clone) == classes(model) and repr(clone) == repr(model)
    grads = []
    for module in (model, clone):
        torch.manual_seed(3)
        module(x, edges()).square().sum().backward()
        grads.append([parameter.grad for parameter in module.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*grads, strict=True))
    revert_rmm(clone)
    assert type(clone.embed) is torch.nn.Linear and type(model.embed) is RMMTorchLinear
    torch.testing.assert_close(clone(x, edges()), model(x, edges()))


def test_a_checkpoint_loads_into_the_model_before_and_after_conversion(model):
    buffer = io.BytesIO()
    torch.save(convert_to_rmm(model, CONFIG).state_dict(), buffer)
    x = torch.randn(NODES, 8)
    expected = model.eval()(x, edges())
    for change in (lambda other: other, lambda other: convert_to_rmm(other, CONFIG)):
        buffer.seek(0)
        other = change(GCN2())
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other.eval()(x, edges()), expected)


# PyG writes `propagate` for each class when its first instance is made; a swap makes none. Forks share slow imports.
FRESH_PROCESS = """
import os, pickle
import torch
from torch_geometric.nn import GCN2Conv
from rmm_gnn import RMMConfig, convert_to_rmm, revert_rmm
from rmm_gnn.nn import RMMGCN2Conv

x, x_0, edges = torch.randn(6, 4), torch.randn(6, 4), torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
weight = torch.rand(5)


def check(start):
    layer = GCN2Conv(4, 0.3) if start == "GCN2Conv" else RMMGCN2Conv(4, 0.3)
    expected = layer(x, x_0, edges, weight)
    swapped = convert_to_rmm(layer, RMMConfig()) if start == "GCN2Conv" else revert_rmm(layer)
    assert type(swapped).__name__ != start
    for _ in range(2):
        out = swapped(x, x_0, edges, weight)
        torch.testing.assert_close(out, expected)
        out.sum().backward()
        assert swapped.weight1.grad is not None
        swapped = pickle.loads(pickle.dumps(swapped))
    adjacency = torch.sparse_coo_tensor(edges.flip(0), weight, (6, 6)).to_sparse_csr()
    torch.testing.assert_close(swapped(x, x_0, adjacency), expected)


for start in ("GCN2Conv", "RMMGCN2Conv"):
    if os.fork() == 0:
        check(start)
        print("swapped", start, flush=True)
        os._exit(0)
    os.wait()
"""


def test_the_swap_works_where_the_other_class_never_had_an_instance(pytestconfig):
    command = [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS]
    finished = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=120)
    assert finished.stdout == "swapped GCN2Conv\nswapped RMMGCN2Conv\n", finished.stderr


def test_an_invalid_pattern_raises():
    with pytest.raises(ValueError, match=r"'config' must have regular expressions as keys \(got '\*'"):
        convert_to_rmm(mlp(), {"*": CONFIG})


@pytest.mark.parametrize("answer", [0.1, None, "yes"])
def test_a_filter_that_answers_something_else_raises(answer):
    with pytest.raises(TypeError, match="'module_filter_fn' must return True, False or an RMMConfig"):
        convert_to_rmm(mlp(), CONFIG, module_filter_fn=lambda module, name: answer)


def test_a_shared_layer_goes_by_all_of_its_names_and_the_first_decides():
    layer = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"first": layer, "second": layer})
    convert_to_rmm(model, {"second": CONFIG})
    assert layer.config == CONFIG
    other = RMMConfig(rate=0.5)
    convert_to_rmm(model, {"first": other, "second": CONFIG})
    assert layer.config == other


def test_an_attribute_called_config_is_not_overwritten():
    model = mlp()
    model[0].config = {"mine": 1}
    with pytest.raises(ValueError, match=r"'0' must not have an attribute 'config' of its own \(got {'mine': 1}\)"):
        convert_to_rmm(model, CONFIG)
    assert model[0].config == {"mine": 1} and type(model[2]) is Linear
