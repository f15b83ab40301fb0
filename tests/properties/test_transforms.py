"""``torch.func`` and forward-mode differentiation: right where nothing is kept, refused where an operator would run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacrev, jvp, vjp, vmap

import rmm_gnn.functional as lean
from rmm_gnn import RMMConfig, compress_activations
from rmm_gnn.nn import LeanDropout, RMMTorchLinear

CONFIG = RMMConfig(rate=1.0)
X_0, GAMMA = torch.ones(10, 4), torch.ones(4)
# Functions of x and a weight, and those of torch.
LINEAR = {
    "rmm_linear": (lambda x, w: lean.rmm_linear(x, w, config=CONFIG), F.linear),
    "addmm": (lambda x, w: lean.addmm(torch.ones(3), x, w.t(), config=CONFIG), lambda x, w: F.linear(x, w) + 1.0),
    "shared_input_linear": (lambda x, w: lean.shared_input_linear(x, w, codec="int4"), F.linear),
    "shared_input_linear-scaled": (
        lambda x, w: lean.shared_input_linear(x, w, scale=2.0), lambda x, w: 2.0 * F.linear(x, w),
    ),
    "anchored_linear": (lambda x, w: lean.anchored_linear(x, w, X_0, config=CONFIG), F.linear),
}  # fmt: skip
# Functions of x alone.
OTHER = {
    "relu": (lean.relu, F.relu),
    "leaky_relu": (lean.leaky_relu, F.leaky_relu),
    "gelu": (lean.gelu, F.gelu),
    "silu": (lean.silu, F.silu),
    "elu": (lean.elu, F.elu),
    "layer_norm": (lambda x: lean.layer_norm(x, [4], GAMMA), lambda x: F.layer_norm(x, [4], GAMMA)),
    "rms_norm": (lambda x: lean.rms_norm(x, [4], GAMMA), lambda x: F.rms_norm(x, [4], GAMMA)),
    "batch_norm": (
        lambda x: lean.batch_norm(x, None, None, training=True), lambda x: F.batch_norm(x, None, None, training=True),
    ),
}  # fmt: skip
RANDOM = {"dropout": lambda x: lean.dropout(x, 0.5), "relu_dropout": lambda x: lean.relu_dropout(x, 0.5)}
REFUSED = r"must be given plain tensors where it keeps anything \(got a tensor (of torch.func|with a tangent)\). Use"


def parametrize(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


def loss(function):
    return lambda *tensors: function(*tensors).square().sum()


@parametrize(LINEAR)
def test_a_weight_with_a_gradient_is_refused(case):
    x, weight = torch.randn(10, 4), torch.randn(3, 4)
    trained = weight.clone().requires_grad_()
    transforms = [
        lambda: grad(loss(case[0]), argnums=1)(x, weight),
        lambda: jacrev(case[0], argnums=1)(x, weight),
        lambda: vjp(case[0], x, weight)[1](torch.ones(10, 3)),
        lambda: grad(lambda x: case[0](x, trained).sum())(x),
        lambda: vmap(lambda x: case[0](x, trained))(torch.randn(2, 10, 4)),
        lambda: jvp(lambda x: case[0](x, trained), (x,), (x,)),
    ]
    # A view that is made inside of a transform is a constant to it.
    for transform in transforms[:3] if case is LINEAR["addmm"] else transforms:
        with pytest.raises(RuntimeError, match=REFUSED):
            transform()


@parametrize(LINEAR)
@pytest.mark.parametrize("grad_mode", [True, False])
def test_tangents_are_not_lost(case, grad_mode):
    x, weight = torch.randn(10, 4), torch.randn(3, 4, requires_grad=True)
    with forward_ad.dual_level(), torch.set_grad_enabled(grad_mode):
        for given in ((forward_ad.make_dual(x, x), weight), (x, forward_ad.make_dual(weight, weight))):
            try:
                out = case[0](*given)
            except RuntimeError as error:
                assert "must be given plain tensors where it keeps anything (got a tensor with a tangent)" in str(error)
            else:
                assert not grad_mode
                torch.testing.assert_close(
                    forward_ad.unpack_dual(out).tangent, forward_ad.unpack_dual(case[1](*given)).tangent
                )


@parametrize(LINEAR)
def test_without_a_gradient_of_the_weight_transforms_are_those_of_torch(case):
    own, torchs = case
    if own is LINEAR["shared_input_linear-scaled"][0]:
        return  # its weight is kept as it is, also for the gradient of x alone
    x, weight = torch.randn(10, 4), torch.randn(3, 4)
    for transform in (
        lambda f: f(x, weight),
        lambda f: grad(loss(f))(x, weight),
        lambda f: jvp(lambda x: f(x, weight), (x,), (x,))[1],
    ):
        torch.testing.assert_close(transform(own), transform(torchs))


@parametrize(OTHER)
def test_functions_of_an_input_with_a_gradient_are_refused(case):
    x = torch.randn(10, 4)
    for transform in (
        lambda: grad(loss(case[0]))(x),
        lambda: jacrev(case[0])(x),
        lambda: vjp(case[0], x)[1](torch.ones(10, 4)),
    ):
        with pytest.raises(RuntimeError, match=REFUSED):
            transform()
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match=REFUSED):
        case[0](forward_ad.make_dual(x.clone().requires_grad_(), x))


@parametrize(OTHER)
def test_functions_of_an_input_without_one_are_those_of_torch(case):
    own, torchs = case
    x = torch.randn(10, 4)
    torch.testing.assert_close(jvp(own, (x,), (x.flip(0),)), jvp(torchs, (x,), (x.flip(0),)))
    torch.testing.assert_close(vmap(own)(torch.stack([x, -x])), vmap(torchs)(torch.stack([x, -x])))


@parametrize(RANDOM)
def test_dropout_is_refused(case):
    """Its mask is hashed from the place of an entry: ``vmap`` would give every sample the same, ``jvp`` no tangent."""
    x = torch.randn(10, 4)
    for transform in (
        lambda: vmap(case, randomness="different")(torch.ones(3, 10, 4)),
        lambda: jvp(case, (x,), (x,)),
        lambda: grad(loss(case))(x),
    ):
        with pytest.raises(RuntimeError, match=REFUSED):
            transform()


def test_layers_in_eval_are_those_of_torch():
    plain = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5)).eval()
    model = torch.nn.Sequential(RMMTorchLinear(4, 3, config=CONFIG), LeanDropout(0.5)).eval()
    model.load_state_dict(plain.state_dict())
    x, parameters = torch.randn(10, 4), dict(model.named_parameters())

    def of(module):
        return lambda parameters: functional_call(module, parameters, (x,)).square().sum()

    torch.testing.assert_close(grad(of(model))(parameters), grad(of(plain))(dict(plain.named_parameters())))
    with pytest.raises(RuntimeError, match=REFUSED):
        grad(of(model.train()))(parameters)


def test_functions_under_compress_activations_are_refused():
    x = torch.randn(10, 4)
    with compress_activations(CONFIG), pytest.raises(RuntimeError, match=REFUSED):
        grad(loss(F.relu))(x)
