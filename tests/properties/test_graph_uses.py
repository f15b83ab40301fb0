"""How a graph may be used besides one forward and one backward pass: shared tensors, changes in place, hooks, modes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig, rmm_linear
from rmm_gnn.nn import LeanBatchNorm1d, LeanDropout, LeanLayerNorm, LeanReLU, RMMLinear, RMMTorchLinear
from tests.sketches.cases import CASES as FAMILIES

EXACT = RMMConfig(rate=1.0)  # a count sketch of all rows: gradients are exact to rounding
ROUGH = RMMConfig(rate=0.3, codec="int4")
GAMMA = torch.ones(4)
# Functions of x [10, 4] and a weight [3, 4], of which some make no use; a seed makes them deterministic.
CALLS = {
    "rmm_linear": lambda x, w: rmm_linear(x, w, config=ROUGH, seed=5),
    "addmm": lambda x, w: lean.addmm(torch.zeros(3), x, w.t(), config=ROUGH, seed=5),
    "shared_input_linear": lambda x, w: lean.shared_input_linear(x, w, codec="int4", seed=5),
    "anchored_linear": lambda x, w: lean.anchored_linear(x, w, torch.ones(10, 4), config=ROUGH, seed=5),
    "relu": lambda x, w: lean.relu(x),
    "leaky_relu": lambda x, w: lean.leaky_relu(x, 0.2),
    "gelu": lambda x, w: lean.gelu(x, seed=5),
    "silu": lambda x, w: lean.silu(x, seed=5),
    "elu": lambda x, w: lean.elu(x, seed=5),
    "dropout": lambda x, w: lean.dropout(x, 0.5, seed=5),
    "relu_dropout": lambda x, w: lean.relu_dropout(x, 0.5, seed=5),
    "layer_norm": lambda x, w: lean.layer_norm(x, [4], w[0], w[1], seed=5),
    "rms_norm": lambda x, w: lean.rms_norm(x, [4], w[0], seed=5),
    "batch_norm": lambda x, w: lean.batch_norm(x, None, None, w[0], w[1], True, seed=5),
    "batch_norm-sketched": lambda x, w: lean.batch_norm(x, None, None, w[0], w[1], True, rate=0.5, seed=5),
}
LINEAR = list(CALLS)[:4]
KEEPS_THE_WEIGHT = [*LINEAR, "layer_norm", "rms_norm", "batch_norm", "batch_norm-sketched"]
CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def leaves():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in ((10, 4), (3, 4))]


def gradients(loss, tensors, **options):
    return torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True, **options)


def once(call):
    x, weight = leaves()
    return gradients(call(x, weight).square().sum(), [x, weight])


def assert_same(found, expected):
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other)


@CALL
def test_backward_twice_needs_retain_graph(call):
    x, weight = leaves()
    loss = call(x, weight).square().sum()
    first = gradients(loss, [x, weight], retain_graph=True)
    assert_same(gradients(loss, [x, weight]), first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        gradients(loss, [x, weight])


@CALL
def test_gradients_of_a_subset_are_those_of_all(call):
    x, weight = leaves()
    expected = once(call)
    for index in (0, 1):
        loss = call(x, weight).square().sum()
        (x, weight)[index].grad = None
        if (found := gradients(loss, [(x, weight)[index]])) and index < len(expected):
            assert_same(found, expected[index : index + 1])


@CALL
def test_an_output_nobody_reads_costs_nothing(call):
    x, weight = leaves()
    call(x, weight)  # its graph is dropped
    assert_same(gradients(call(x, weight).square().sum(), [x, weight]), once(call))


@CALL
def test_saved_tensors_may_be_moved_and_packed(call):
    x, weight = leaves()
    with torch.autograd.graph.save_on_cpu():
        out = call(x, weight)
    assert_same(gradients(out.square().sum(), [x, weight]), once(call))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.clone(), t.dtype), lambda packed: packed[0]):
        out = call(x, weight)
    assert_same(gradients(out.square().sum(), [x, weight]), once(call))


@CALL
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
def test_modes_of_torch_change_nothing(call):
    expected, (x, weight) = once(call), leaves()
    with torch.autograd.detect_anomaly(check_nan=True):
        assert_same(gradients(call(x, weight).square().sum(), [x, weight]), expected)
    torch.use_deterministic_algorithms(True)
    try:
        assert_same(gradients(call(x, weight).square().sum(), [x, weight]), expected)
    finally:
        torch.use_deterministic_algorithms(False)


@CALL
def test_defaults_for_new_tensors_change_nothing(call):
    expected, (x, weight) = once(call), leaves()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        out = call(x, weight) if call is not CALLS["addmm"] and call is not CALLS["anchored_linear"] else None
        if out is not None:
            assert out.dtype == torch.float32
            assert_same(gradients(out.square().sum(), [x, weight]), expected)
    finally:
        torch.set_default_dtype(before)
    if call in (CALLS["addmm"], CALLS["anchored_linear"]):
        return  # they make a tensor of their own here
    with torch.device("meta"):
        out = call(x, weight)
        found = gradients(out.square().sum(), [x, weight])
    assert_same(found, expected)


@CALL
def test_without_gradients_values_are_the_same(call):
    x, weight = leaves()
    expected = call(x, weight).detach()
    with torch.no_grad():
        torch.testing.assert_close(call(x, weight), expected)
    with torch.inference_mode():
        out = call(x, weight)
    assert out.is_inference()
    torch.testing.assert_close(out.clone(), expected)


@CALL
def test_outputs_may_be_changed_in_place_and_viewed(call):
    x, weight = leaves()
    out = call(x, weight)
    out[1].zero_()
    out.view(-1)[7:].mul_(3.0)
    found = gradients(out.square().sum(), [x, weight])
    x, weight = leaves()
    factor = torch.ones_like(out)
    factor[1] = 0.0
    factor.view(-1)[7:].mul_(3.0)
    assert_same(found, gradients((call(x, weight) * factor).square().sum(), [x, weight]))


@CALL
def test_the_input_may_be_changed_in_place(call):
    x, weight = leaves()
    inner = x * 1.0
    out = call(inner, weight)
    inner.mul_(-7.0).add_(3.0)
    assert_same(gradients(out.square().sum(), [x, weight]), once(call))


@pytest.mark.parametrize("name", KEEPS_THE_WEIGHT)
def test_the_weight_may_not(name):
    x, weight = leaves()
    inner = weight * 1.0
    out = CALLS[name](x, inner)
    inner.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(out.square().sum(), [x])


def test_nor_a_kept_x_0():
    x, weight = leaves()
    x_0 = torch.randn(10, 4)
    out = lean.anchored_linear(x, weight, x_0, config=EXACT)
    x_0.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_one_x_in_two_layers_and_one_weight_in_two_layers():
    for reuse in (lambda f, x, w: f(x, w) + 2.0 * f(x, w), lambda f, x, w: f(x, w) * f(2.0 * x, w)):
        x, weight = leaves()
        found = gradients(reuse(lambda x, w: rmm_linear(x, w, config=EXACT), x, weight).sum(), [x, weight])
        expected = gradients(reuse(F.linear, x, weight).sum(), [x, weight])
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("x_0", [False, True])
def test_one_tensor_as_x_and_weight(x_0):
    square = torch.randn(6, 6)
    own, other = square.clone().requires_grad_(), square.clone().requires_grad_()
    if x_0:
        out, expected = lean.anchored_linear(own, own, own, own, config=EXACT), 2.0 * F.linear(other, other)
    else:
        out, expected = rmm_linear(own, own, own[0], config=EXACT), F.linear(other, other, other[0])
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-3)


def test_parameters_and_subclasses_as_x():
    class Own(torch.Tensor):
        pass

    x, weight = leaves()
    expected = gradients(rmm_linear(x, weight, config=ROUGH, seed=1).sum(), [x, weight])
    parameter = torch.nn.Parameter(x.detach())
    assert_same(gradients(rmm_linear(parameter, weight, config=ROUGH, seed=1).sum(), [parameter, weight]), expected)
    wrapped = x.detach().as_subclass(Own).requires_grad_()
    out = rmm_linear(wrapped, weight, config=ROUGH, seed=1)
    assert type(out) is Own
    found = torch.autograd.grad(out.sum().as_subclass(torch.Tensor), [wrapped, weight])
    assert_same([tensor.as_subclass(torch.Tensor) for tensor in found], expected)


def test_one_module_twice_in_a_forward_pass():
    layer = RMMTorchLinear(4, 4, config=EXACT)
    plain = torch.nn.Linear(4, 4)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(10, 4)
    for module in (layer, plain):
        module(module(x)).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-4)


def test_a_graph_in_which_no_layer_has_a_part():
    x, weight = leaves()
    out = rmm_linear(x, weight, config=ROUGH)
    assert torch.autograd.grad(out.sum() * 0.0 + x.sum(), [x])[0].eq(1.0).all()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("codec", ["fp32", "bf16", "int2:group_size=3"])
def test_meta_and_fake_tensors_go_through(family, codec):
    from torch._subclasses.fake_tensor import FakeTensorMode

    config = RMMConfig(rate=0.5, sketch=family, codec=codec)

    def run(**where):
        x, weight = (torch.randn(shape, **where).requires_grad_() for shape in ((2, 5, 4), (3, 4)))
        rmm_linear(x, weight, config=config).sum().backward()
        return x.grad, weight.grad

    found = run(device="meta")
    assert [(tensor.shape, tensor.is_meta) for tensor in found] == [((2, 5, 4), True), ((3, 4), True)]
    with FakeTensorMode():
        assert [tensor.shape for tensor in run()] == [(2, 5, 4), (3, 4)]


def test_a_model_on_meta():
    with torch.device("meta"):
        model = torch.nn.Sequential(
            RMMLinear(4, 8, config=ROUGH), LeanBatchNorm1d(8), LeanReLU(), LeanDropout(0.5),
            RMMTorchLinear(8, 8, config=ROUGH), LeanLayerNorm(8),
        )  # fmt: skip
        out = model(torch.randn(10, 4))
    assert out.is_meta and out.shape == (10, 8)
    out.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in model.parameters())
