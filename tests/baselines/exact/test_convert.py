"""convert_to_exact and revert_exact change what layers keep and nothing else."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
import torch_geometric.nn
from torch import Tensor
from torch.nn import Module, ModuleDict, Sequential
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN2Conv

from rmm_gnn.baselines.exact import (
    ExactBatchNorm1d,
    ExactConfig,
    ExactDropout,
    ExactELU,
    ExactGCN2Conv,
    ExactLeakyReLU,
    ExactLinear,
    ExactPyGLinear,
    ExactReLU,
    convert_to_exact,
    revert_exact,
)
from tests.nn.recording import saved_tensors

NODES = 40
SWAPPED = {
    "embed": ExactLinear,
    "conv": ExactGCN2Conv,
    "tail.0": ExactBatchNorm1d,
    "tail.1": ExactReLU,
    "tail.2": ExactDropout,
    "tail.3": ExactPyGLinear,
    "tail.4": torch_geometric.nn.BatchNorm,
    "tail.4.module": ExactBatchNorm1d,
    "tail.5": ExactLeakyReLU,
    "tail.6": ExactELU,
    "tail.7": ExactLinear,
}


def edges() -> Tensor:
    nodes = torch.arange(NODES)
    return torch.cat([torch.stack([nodes, (nodes + step) % NODES]) for step in (1, 3, NODES - 1, NODES - 3)], 1)


class Model(Module):
    """One layer of each kind that is swapped."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(8, 16)
        self.conv = GCN2Conv(16, 0.5, shared_weights=False)
        self.tail = Sequential(
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.1),
            torch_geometric.nn.Linear(16, 12),
            torch_geometric.nn.BatchNorm(12),
            torch.nn.LeakyReLU(0.2),
            torch.nn.ELU(0.7),
            torch.nn.Linear(12, 3),
        )

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = self.embed(x)
        return self.tail(self.conv(x, x, adjacency))


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def classes(model: Module) -> dict[str, type[Module]]:
    return {name: type(module) for name, module in model.named_modules()}


def train(model: Module, steps: int = 40) -> list[float]:
    torch.manual_seed(1)
    x, target = torch.randn(NODES, 8), torch.arange(NODES) % 3
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x, edges()), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_every_kind_is_swapped_and_the_parameters_stay(model):
    parameters, keys = dict(model.named_parameters()), list(model.state_dict())
    state = torch.get_rng_state()
    assert convert_to_exact(model, 0.25, 4) is model
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: kind for name, kind in classes(model).items() if name in SWAPPED} == SWAPPED
    assert model.conv.config == model.tail[0].config == ExactConfig(0.25, 4)
    assert list(model.state_dict()) == keys
    after = dict(model.named_parameters())
    assert list(after) == list(parameters) and all(after[name] is parameters[name] for name in parameters)


def test_defaults_are_the_published_setting(model):
    assert convert_to_exact(model).embed.config == ExactConfig(kept_frac=0.125, bits=2)


def test_eval_is_the_stock_model_and_training_computes_the_same_values(model):
    x = torch.randn(NODES, 8)
    stock = copy.deepcopy(model)
    convert_to_exact(model)
    results = []
    for each in (stock, model):
        each.tail[2].p = 0.0
        results.append((each(x, edges()), dict(each.state_dict())))
    torch.testing.assert_close(*(out for out, _ in results))
    torch.testing.assert_close(results[0][1], results[1][1])
    state = torch.get_rng_state()
    with saved_tensors() as saved:
        out = model.eval()(x, edges())
    assert torch.equal(out, stock.eval()(x, edges())) and torch.equal(state, torch.get_rng_state())
    assert not any(tensor.dtype == torch.uint8 for tensor in saved)


def test_revert_gives_back_the_stock_model(model):
    before, attributes = classes(model), {name: set(vars(module)) for name, module in model.named_modules()}
    parameters = list(model.parameters())
    revert_exact(convert_to_exact(model))
    assert classes(model) == before
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert revert_exact(model) is model


def test_a_converted_layer_is_one_that_was_constructed(model):
    convert_to_exact(model, 0.5, 8)
    for converted, made in (
        (model.embed, ExactLinear(8, 16, kept_frac=0.5, bits=8)),
        (model.tail[3], ExactPyGLinear(16, 12, kept_frac=0.5, bits=8)),
        (model.conv, ExactGCN2Conv(16, 0.5, shared_weights=False, kept_frac=0.5, bits=8)),
        (model.tail[0], ExactBatchNorm1d(16, bits=8)),
        (model.tail[1], ExactReLU()),
        (model.tail[2], ExactDropout(0.1)),
        (model.tail[5], ExactLeakyReLU(0.2)),
        (model.tail[6], ExactELU(0.7, bits=8)),
    ):
        assert repr(converted) == repr(made) and set(vars(converted)) == set(vars(made))


def test_hooks_and_an_optimizer_made_before_stay(model):
    calls = []
    model.embed.register_forward_hook(lambda *_: calls.append("embed"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert_to_exact(model)
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(NODES, 8), edges()).square().sum().backward()
    optimizer.step()
    assert calls == ["embed"]
    assert all(not torch.equal(before[name], value) for name, value in model.named_parameters() if "bias" not in name)


def test_converting_twice_takes_the_new_settings(model):
    convert_to_exact(convert_to_exact(model), 0.5, 8)
    assert model.embed.config == model.tail[6].config == ExactConfig(0.5, 8)
    assert {name: kind for name, kind in classes(model).items() if name in SWAPPED} == SWAPPED


def test_a_filter_chooses(model):
    seen = []

    def choose(module: Module, name: str) -> bool:
        seen.append(name)
        return isinstance(module, torch.nn.BatchNorm1d)

    convert_to_exact(model, module_filter_fn=choose)
    assert seen == [name for name in SWAPPED if name != "tail.4"]
    assert [name for name, kind in classes(model).items() if kind in SWAPPED.values() and name != "tail.4"] == [
        "tail.0",
        "tail.4.module",
    ]


@pytest.mark.parametrize(("kept_frac", "bits"), [(0.5, 4), (1.0, 2), (0.5, None)])
def test_a_converted_model_learns(model, kept_frac, bits):
    losses = train(convert_to_exact(model, kept_frac, bits))
    assert sum(losses[-5:]) / 5 < 0.6 * losses[0]


def test_manual_seed_replays_training(model):
    other = copy.deepcopy(model)
    assert train(convert_to_exact(model), 5) == train(convert_to_exact(other), 5)


def test_a_compiled_model_draws_what_the_eager_one_draws():
    layers = torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Dropout(0.2), torch.nn.Linear(16, 4)
    model = convert_to_exact(Sequential(*layers), 0.5, 4)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(64, 16)
    grads = []
    for call in (model, compiled, compiled):
        torch.manual_seed(6)
        loss = call(x).square().sum()
        grads.append(torch.autograd.grad(loss, list(model.parameters())))
    for eager, first, second in zip(*grads, strict=True):
        torch.testing.assert_close(first, eager)
        torch.testing.assert_close(second, eager)
    assert not torch.equal(torch.autograd.grad(compiled(x).square().sum(), model[0].weight)[0], grads[0][0])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_recompute_with_the_same_random_numbers(model, reentrant):
    convert_to_exact(model, 0.5, 2)
    x = torch.randn(NODES, 8, requires_grad=True)
    grads = []
    for run in (model, lambda *inputs: checkpoint(model, *inputs, use_reentrant=reentrant)):
        model.zero_grad()
        torch.manual_seed(8)
        run(x, edges()).square().sum().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*grads, strict=True))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_converted_model(model, duplicate):
    clone = duplicate(convert_to_exact(model))
    assert classes(clone) == classes(model) and repr(clone) == repr(model)
    assert train(clone, 3) == train(model, 3)


def test_a_checkpoint_loads_into_the_model_before_and_after_conversion(model):
    buffer = io.BytesIO()
    torch.save(convert_to_exact(model).state_dict(), buffer)
    x = torch.randn(NODES, 8)
    expected = model.eval()(x, edges())
    for change in (lambda other: other, convert_to_exact):
        buffer.seek(0)
        other = change(Model())
        other.load_state_dict(torch.load(buffer, weights_only=True))
        assert torch.equal(other.eval()(x, edges()), expected)


def test_autocast_trains_a_converted_model(model):
    convert_to_exact(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(torch.randn(NODES, 8), edges())
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_lazy_layers_convert():
    model = Sequential(torch_geometric.nn.Linear(-1, 4), torch.nn.ReLU())
    convert_to_exact(model)(torch.randn(5, 8)).sum().backward()
    assert model[0].weight.grad.shape == (4, 8)


def test_a_single_layer_is_a_model_and_subclasses_are_left_alone():
    class Scaled(torch.nn.Linear):
        pass

    assert type(convert_to_exact(torch.nn.Linear(8, 4))) is ExactLinear
    layers = convert_to_exact(ModuleDict({"mine": Scaled(4, 4), "theirs": torch.nn.Linear(4, 4)}))
    assert [type(layer) for layer in layers.values()] == [Scaled, ExactLinear]


def test_a_model_without_layers_raises():
    with pytest.raises(ValueError, match=r"'model' must have a layer to convert \(got 0 candidates, none selected\)"):
        convert_to_exact(torch.nn.Sigmoid())
    with pytest.raises(ValueError, match=r"\(got 1 candidates, none selected\)"):
        convert_to_exact(torch.nn.ReLU(), module_filter_fn=lambda module, name: False)


def test_a_forward_set_on_the_instance_raises_and_swaps_nothing(model):
    model.tail[3].forward = lambda x: x
    with pytest.raises(ValueError, match=r"'tail.3' must run its class's forward \(got forward set on the instance\)"):
        convert_to_exact(model)
    assert type(model.embed) is torch.nn.Linear


def test_an_attribute_called_config_is_not_overwritten(model):
    model.embed.config = "mine"
    with pytest.raises(ValueError, match="'embed' must not have an attribute 'config' of its own"):
        convert_to_exact(model)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ((0.0, 2), ValueError, "'kept_frac' must lie in"),
        ((0.5, 3), ValueError, "'bits' must be"),
        (("a",), TypeError, "'kept_frac'"),
    ],
)
def test_settings_are_checked_before_anything_is_swapped(model, settings, error, match):
    with pytest.raises(error, match=match):
        convert_to_exact(model, *settings)
    assert type(model.embed) is torch.nn.Linear


# PyG writes `propagate` for each class when its first instance is made; a swap makes none.
FRESH_PROCESS = """
import torch
from torch_geometric.nn import GCN2Conv
from rmm_gnn.baselines.exact import convert_to_exact

x, edges = torch.randn(6, 4), torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
layer = GCN2Conv(4, 0.3)
expected = layer(x, x, edges)
torch.testing.assert_close(convert_to_exact(layer)(x, x, edges), expected)
print("swapped")
"""


def test_the_swap_works_where_the_class_never_had_an_instance(pytestconfig):
    command = [sys.executable, "-W", "ignore", "-c", FRESH_PROCESS]
    finished = subprocess.run(command, cwd=pytestconfig.rootpath, capture_output=True, text=True, timeout=120)
    assert finished.stdout == "swapped\n", finished.stderr
