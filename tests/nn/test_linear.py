"""RMMLinear is torch_geometric.nn.Linear in everything but what it keeps."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch.nn.parameter import UninitializedParameter
from torch_geometric.nn import Linear

from rmm_gnn import CountSketch, RMMConfig, SORSSketch, convert_to_rmm
from rmm_gnn.nn import RMMLinear
from tests.nn.recording import SeedRecorder, assert_unbiased


def twins(in_channels: int, out_channels: int, **arguments) -> tuple[Linear, RMMLinear]:
    """Both layers, initialised from the same random numbers."""
    torch.manual_seed(0)
    reference = Linear(in_channels, out_channels, **arguments)
    torch.manual_seed(0)
    return reference, RMMLinear(in_channels, out_channels, rate=0.25, **arguments)


def test_constructor_arguments_stand_at_their_place():
    theirs = list(inspect.signature(Linear.__init__).parameters.values())
    ours = list(inspect.signature(RMMLinear.__init__).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    added = ours[len(theirs) :]
    assert [p.name for p in added] == ["config", "rate", "sketch"]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is None for p in added)


def test_config_cannot_be_given_by_position():
    with pytest.raises(TypeError, match="positional argument"):
        RMMLinear(4, 4, True, None, None, RMMConfig())


@pytest.mark.parametrize("weight_initializer", [None, "glorot", "uniform", "kaiming_uniform"])
@pytest.mark.parametrize("bias_initializer", [None, "zeros"])
def test_initialisers_draw_the_same_parameters(weight_initializer, bias_initializer):
    settings = {"weight_initializer": weight_initializer, "bias_initializer": bias_initializer}
    reference, layer = twins(6, 5, **settings)
    assert torch.equal(layer.weight, reference.weight) and torch.equal(layer.bias, reference.bias)
    for module in (reference, layer):
        torch.manual_seed(1)
        module.reset_parameters()
    assert torch.equal(layer.weight, reference.weight) and torch.equal(layer.bias, reference.bias)


def test_unknown_initialiser_raises_as_in_pyg():
    with pytest.raises(RuntimeError, match="Weight initializer 'other' not supported"):
        RMMLinear(4, 4, weight_initializer="other")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 6), (3, 7, 6), (6,), (0, 6)])
def test_outputs_are_those_of_pyg(bias, shape):
    reference, layer = twins(6, 5, bias=bias)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), reference(x))
    assert torch.equal(layer.eval()(x), reference.eval()(x))


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_of_input_and_bias_are_exact(bias):
    reference, layer = twins(6, 5, bias=bias)
    inputs = [torch.randn(40, 6, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2)]
    target = torch.randn(40, 5)
    for module, x in zip((reference, layer), inputs, strict=True):
        (module(x) * target).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    if bias:
        torch.testing.assert_close(layer.bias.grad, reference.bias.grad)
    assert not torch.allclose(layer.weight.grad, reference.weight.grad)


def test_weight_gradient_is_unbiased():
    torch.manual_seed(0)
    layer = RMMLinear(6, 5, rate=0.5)
    x = torch.randn(400, 6)
    y = x @ torch.randn(6, 5)

    def draw() -> torch.Tensor:
        return torch.autograd.grad((layer(x) * y).sum(), layer.weight)[0]

    assert_unbiased(draw, y.T @ x, draws=150)


def test_weight_gradient_is_exact_when_every_row_is_kept():
    reference, layer = twins(6, 5)
    layer.config = RMMConfig(rate=1.0)
    x = torch.randn(40, 6)
    for module in (reference, layer):
        module(x).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, reference.weight.grad, rtol=1e-4, atol=1e-4)


def test_lazy_layer_takes_its_size_from_the_first_input():
    reference, layer = twins(-1, 5)
    assert isinstance(layer.weight, UninitializedParameter)
    assert repr(layer) == "RMMLinear(-1, 5, bias=True, rate=0.25)"
    x = torch.randn(40, 6)
    for module in (reference, layer):
        torch.manual_seed(3)
        module(x)
    assert layer.in_channels == 6 and not hasattr(layer, "_hook")
    assert torch.equal(layer.weight, reference.weight) and torch.equal(layer.bias, reference.bias)
    layer(x).sum().backward()
    assert layer.weight.grad.shape == (5, 6)


def test_lazy_layer_can_be_converted_before_and_after_its_first_input():
    x = torch.randn(40, 6)
    early = Linear(-1, 5)
    weight = early.weight
    convert_to_rmm(early, RMMConfig(rate=0.25))
    assert isinstance(early, RMMLinear) and early.weight is weight
    late = Linear(-1, 5)
    late(x)
    convert_to_rmm(late, RMMConfig(rate=0.25))
    for layer in (early, late):
        with SeedRecorder() as seeds:
            layer(x).sum().backward()
        assert len(seeds.forward) == 1 and layer.weight.grad.shape == (5, 6)


def test_lazy_copy_is_initialised_on_its_own():
    layer = RMMLinear(-1, 5, rate=0.25)
    clone = copy.deepcopy(layer)
    clone(torch.randn(40, 6))
    assert clone.in_channels == 6 and layer.in_channels == -1
    layer(torch.randn(40, 3))
    assert layer.in_channels == 3


@pytest.mark.parametrize("source_channels", [6, -1])
@pytest.mark.parametrize("target_channels", [6, -1])
def test_state_dict_goes_both_ways(source_channels, target_channels):
    for source_class, target_class in ((Linear, RMMLinear), (RMMLinear, Linear)):
        source, target = source_class(source_channels, 5), target_class(target_channels, 5)
        assert list(source.state_dict()) == list(target.state_dict()) == ["weight", "bias"]
        target.load_state_dict(source.state_dict())
        assert target.in_channels == source_channels
        x = torch.randn(4, 6)
        if source_channels == -1:
            assert isinstance(target.weight, UninitializedParameter)
            assert target(x).shape == (4, 5)
        else:
            assert torch.equal(target.eval()(x), source.eval()(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_have_the_config_and_parameters_of_their_own(duplicate):
    layer = RMMLinear(6, 5, config=RMMConfig(rate=0.5, sketch=SORSSketch(transform="dct"), center=False))
    clone = duplicate(layer)
    assert clone.config == layer.config and repr(clone) == repr(layer)
    assert clone.weight is not layer.weight and torch.equal(clone.weight, layer.weight)
    x = torch.randn(20, 6)
    gradients = []
    for module in (layer, clone):
        torch.manual_seed(5)
        module(x).square().sum().backward()
        gradients.append(module.weight.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"rate": 0.1}, "RMMLinear(16, 32, bias=True, rate=0.1)"),
        ({}, "RMMLinear(16, 32, bias=True, rate=0.1)"),
        ({"bias": False, "rate": 0.5}, "RMMLinear(16, 32, bias=False, rate=0.5)"),
        ({"sketch": "gaussian"}, "RMMLinear(16, 32, bias=True, rate=0.1, sketch='gaussian')"),
        ({"config": RMMConfig(size=8, center=False)}, "RMMLinear(16, 32, bias=True, size=8, center=False)"),
    ],
)
def test_repr(settings, shown):
    assert repr(RMMLinear(16, 32, **settings)) == shown


def test_rate_and_sketch_are_short_for_a_config():
    assert RMMLinear(4, 4).config == RMMConfig()
    assert RMMLinear(4, 4, rate=0.3, sketch="sors").config == RMMConfig(rate=0.3, sketch="sors")
    assert RMMLinear(4, 4, sketch=CountSketch()).config == RMMConfig()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"config": RMMConfig(), "rate": 0.1}, ValueError, "'config' must be given alone"),
        ({"config": RMMConfig(), "sketch": "sors"}, ValueError, "'config' must be given alone"),
        ({"config": 0.1}, TypeError, r"'config' must be an RMMConfig \(got float\)"),
        ({"rate": 0.0}, ValueError, r"'rate' must lie in \(0, 1\]"),
        ({"rate": "0.1"}, TypeError, "'rate' must be a number"),
        ({"sketch": "unknown"}, ValueError, "'sketch' must be .*count_sketch"),
    ],
)
def test_wrong_settings_raise_in_the_constructor(settings, error, message):
    with pytest.raises(error, match=message):
        RMMLinear(4, 4, **settings)
