"""Models of every family: which layers are converted, and that nothing but their weight gradients changes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import Linear

pytest.importorskip("transformers")

from transformers.pytorch_utils import Conv1D

from rmm_gnn import RMMConfig, revert_rmm
from rmm_gnn.hf import RMMConv1D, apply_rmm
from rmm_gnn.nn import RMMTorchLinear
from tests.hf.models import FAMILIES, batch, build, gradients
from tests.nn.recording import assert_unbiased

EVERY = pytest.mark.parametrize("name", FAMILIES)
OURS = (RMMTorchLinear, RMMConv1D)


def converted(model):
    return {name for name, module in model.named_modules() if type(module) in OURS}


@EVERY
def test_every_linear_layer_is_converted(name):
    model = build(name)
    stock = {name for name, module in model.named_modules() if type(module) in (Linear, Conv1D)}
    keys, parameters = list(model.state_dict()), list(model.parameters())
    assert apply_rmm(model, RMMConfig(rate=0.25)) is model
    assert converted(model) == stock and len(stock) == FAMILIES[name].linear
    assert list(model.state_dict()) == keys
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))


@EVERY
def test_the_output_head_is_left_out_on_request(name):
    everything = converted(apply_rmm(build(name), {"rate": 0.25}))
    rest = converted(apply_rmm(build(name), {"rate": 0.25}, exclude="output-head"))
    assert rest < everything and len(everything) - len(rest) == FAMILIES[name].head


@EVERY
def test_outputs_are_the_same_in_training_and_in_eval(name):
    plain, ours = build(name), apply_rmm(build(name), {"rate": 0.25})
    inputs = batch(name)
    expected, out = plain(**inputs), ours(**inputs)
    assert torch.equal(out.loss, expected.loss) and torch.equal(out.logits, expected.logits)
    state = torch.get_rng_state()
    with torch.no_grad():
        assert torch.equal(ours.eval()(**inputs).logits, plain.eval()(**inputs).logits)
    assert torch.equal(torch.get_rng_state(), state), "eval draws nothing"


@EVERY
def test_gradients_of_all_but_sketched_weights_are_exact(name):
    plain, ours = build(name), apply_rmm(build(name), {"rate": 0.25}, exclude="output-head")
    sketched = {f"{layer}.weight" for layer in converted(ours)}
    expected, found = gradients(plain, batch(name)), gradients(ours, batch(name))
    assert expected.keys() == found.keys()
    for parameter, gradient in expected.items():
        close = torch.allclose(found[parameter], gradient, rtol=1e-4, atol=1e-6)
        assert close or parameter in sketched, parameter
    estimated = [name for name in sketched if not torch.allclose(found[name], expected[name], rtol=1e-2)]
    assert len(estimated) > len(sketched) / 2


@EVERY
def test_at_rate_1_all_gradients_are_exact(name):
    plain, ours = build(name), apply_rmm(build(name), {"rate": 1.0, "sketch": "row_sampling"})
    expected, found = gradients(plain, batch(name)), gradients(ours, batch(name))
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_estimates_are_unbiased(name):
    """Of the sum of all outputs, whose gradient stands out of the noise."""
    inputs = {key: value for key, value in batch(name).items() if key != "labels"}
    model = apply_rmm(build(name), {"rate": 0.6})
    sketched = [f"{layer}.weight" for layer in sorted(converted(model)) if layer != "lm_head"]

    def draw(model=model):
        weights = [model.get_parameter(weight) for weight in sketched]
        return torch.cat([g.flatten() for g in torch.autograd.grad(model(**inputs).logits.sum(), weights)])

    assert_unbiased(draw, draw(build(name)), draws=100)


@EVERY
def test_revert_gives_the_model_back(name):
    plain = build(name)
    model = copy.deepcopy(plain)
    apply_rmm(model, {"rate": 0.25}, whole_block=True)
    gradients(model, batch(name))
    revert_rmm(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert all(
        set(vars(ours)) == set(vars(theirs)) for ours, theirs in zip(model.modules(), plain.modules(), strict=True)
    )
    expected, found = gradients(plain, batch(name)), gradients(model, batch(name))
    assert all(torch.equal(found[parameter], gradient) for parameter, gradient in expected.items())
