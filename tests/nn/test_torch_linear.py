"""RMMTorchLinear is a torch.nn.Linear in everything but what it keeps."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch

from rmm_gnn import RMMConfig
from rmm_gnn.nn import RMMTorchLinear
from tests.nn.recording import SeedRecorder, assert_unbiased


def twins(bias: bool = True, **settings) -> tuple[torch.nn.Linear, RMMTorchLinear]:
    torch.manual_seed(0)
    reference = torch.nn.Linear(6, 5, bias)
    torch.manual_seed(0)
    return reference, RMMTorchLinear(6, 5, bias, **(settings or {"rate": 0.25}))


def test_constructor_arguments_stand_at_their_place():
    theirs = list(inspect.signature(torch.nn.Linear.__init__).parameters.values())
    ours = list(inspect.signature(RMMTorchLinear.__init__).parameters.values())
    assert [(p.name, p.default, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.default, p.kind) for p in theirs]
    added = ours[len(theirs) :]
    assert [p.name for p in added] == ["config", "rate", "sketch"]
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY and p.default is None for p in added)


def test_it_is_a_torch_linear():
    layer = RMMTorchLinear(6, 5, device="cpu", dtype=torch.float64)
    assert isinstance(layer, torch.nn.Linear)
    assert layer.weight.dtype == torch.float64
    assert (layer.in_features, layer.out_features) == (6, 5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 6), (3, 7, 6), (6,), (0, 6)])
def test_outputs_are_those_of_torch(bias, shape):
    reference, layer = twins(bias)
    assert torch.equal(layer.weight, reference.weight)
    x = torch.randn(shape)
    torch.testing.assert_close(layer(x), reference(x))
    torch.testing.assert_close(layer(input=x), reference(input=x))
    assert torch.equal(layer.eval()(x), reference.eval()(x))


def test_gradients_of_input_and_bias_are_exact_and_that_of_the_weight_unbiased():
    reference, layer = twins(rate=0.5)
    x = torch.randn(4, 100, 6, requires_grad=True)
    y = x.detach() @ torch.randn(6, 5)
    grad_x, grad_weight, grad_bias = torch.autograd.grad((reference(x) * y).sum(), [x, *reference.parameters()])

    grads = torch.autograd.grad((layer(x) * y).sum(), [x, *layer.parameters()])
    torch.testing.assert_close(grads[0], grad_x)
    torch.testing.assert_close(grads[2], grad_bias)

    def draw() -> torch.Tensor:
        return torch.autograd.grad((layer(x) * y).sum(), layer.weight)[0]

    assert_unbiased(draw, grad_weight, draws=150)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_from_linear_adopts_parameters_and_mode(bias, training):
    linear = torch.nn.Linear(6, 5, bias).double().train(training)
    layer = RMMTorchLinear.from_linear(linear, RMMConfig(rate=0.25))
    assert layer.weight is linear.weight and layer.bias is linear.bias
    assert layer.training is training and layer.config == RMMConfig(rate=0.25)
    x = torch.randn(40, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), linear(x))
    with SeedRecorder() as seeds:
        layer(x).sum().backward()
    assert len(seeds.forward) == training and linear.weight.grad is not None


def test_from_linear_takes_the_default_config_and_does_not_touch_the_generator():
    linear = torch.nn.Linear(6, 5)
    before = torch.get_rng_state()
    assert RMMTorchLinear.from_linear(linear).config == RMMConfig()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_optimizer_made_before_from_linear_steps_the_new_layer():
    linear = torch.nn.Linear(6, 5)
    optimizer = torch.optim.SGD(linear.parameters(), lr=0.1)
    layer = RMMTorchLinear.from_linear(linear)
    before = layer.weight.detach().clone()
    layer(torch.randn(40, 6)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_state_dict_goes_both_ways():
    for source, target in (twins(), twins()[::-1]):
        torch.nn.init.normal_(source.weight)
        assert list(source.state_dict()) == list(target.state_dict()) == ["weight", "bias"]
        target.load_state_dict(source.state_dict())
        x = torch.randn(4, 6)
        assert torch.equal(target.eval()(x), source.eval()(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_keep_the_config(duplicate):
    layer = RMMTorchLinear(6, 5, sketch="rademacher", rate=0.5)
    clone = duplicate(layer)
    assert clone.config == layer.config and torch.equal(clone.weight, layer.weight)
    assert clone(torch.randn(20, 6)).sum().backward() is None and clone.weight.grad is not None


def test_repr_is_that_of_torch_with_the_config():
    assert repr(twins(rate=0.1)[1]) == "RMMTorchLinear(in_features=6, out_features=5, bias=True, rate=0.1)"
    assert repr(twins(False, config=RMMConfig(size=4, codec="bf16"))[1]) == (
        "RMMTorchLinear(in_features=6, out_features=5, bias=False, size=4, codec='bf16')"
    )


def test_wrong_settings_raise_in_the_constructor():
    with pytest.raises(ValueError, match="'config' must be given alone"):
        RMMTorchLinear(4, 4, config=RMMConfig(), rate=0.1)
    with pytest.raises(TypeError, match="'config' must be an RMMConfig"):
        RMMTorchLinear.from_linear(torch.nn.Linear(4, 4), config="0.1")
    with pytest.raises(TypeError, match="positional argument"):
        RMMTorchLinear(4, 4, True, None, None, RMMConfig())
