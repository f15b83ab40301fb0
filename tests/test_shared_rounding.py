"""A code or sketch that layers share is made anew at every step, whoever still holds the graph of the step before."""

from itertools import pairwise

import pytest
import torch

from rmm_gnn import RMMConfig, compress_activations
from rmm_gnn.functional import relu_dropout, shared_input_linear
from rmm_gnn.nn import RMMGCN2Conv


def different(gradients):
    return all(not torch.equal(one, other) for one, other in pairwise(gradients))


def test_a_retained_graph_does_not_freeze_the_code_of_x_0():
    torch.manual_seed(0)
    conv = RMMGCN2Conv(8, 0.5, shared_weights=False, normalize=False, config=RMMConfig(rate=1.0, x0_codec="int2"))
    x, edges, gradients = torch.randn(50, 8), torch.randint(50, (2, 200)), []
    for _ in range(4):
        loss = conv(x, x, edges).square().sum()
        loss.backward(retain_graph=True)
        gradients.append(conv.weight2.grad.clone())
        conv.zero_grad()
    assert different(gradients)


def test_a_head_outside_the_loss_does_not_freeze_the_code():
    x, weight, other = torch.randn(50, 8), *(torch.randn(3, 8, requires_grad=True) for _ in range(2))
    gradients, held = [], []
    for _ in range(4):
        held.append(shared_input_linear(x, other, codec="int1"))
        loss = shared_input_linear(x, weight, codec="int1").square().sum()
        gradients.append(torch.autograd.grad(loss, weight)[0])
    assert different(gradients)


@pytest.mark.parametrize("retain_graph", [False, True])
def test_a_mode_around_the_whole_loop_draws_afresh(retain_graph):
    x, layers = torch.randn(200, 8), [torch.nn.Linear(8, 4) for _ in range(2)]
    gradients = []
    with compress_activations(RMMConfig(rate=0.1)):
        for _ in range(4):
            loss = sum(layer(x).square().sum() for layer in layers)
            loss.backward(retain_graph=retain_graph)
            gradients.append(layers[0].weight.grad.clone())
            layers[0].weight.grad = None
    assert different(gradients)


def test_a_given_seed_decides_the_rounding_of_a_shared_code():
    x, weight = torch.randn(50, 8), torch.randn(3, 8, requires_grad=True)
    held = [shared_input_linear(x, weight, codec="int1", seed=seed).sum() for seed in (1, 2, 1)]
    one, two, again = (torch.autograd.grad(out, weight)[0] for out in held)
    assert not torch.equal(one, two)
    assert torch.equal(one, again)


def test_inference_tensors_are_taken():
    with torch.inference_mode():
        x = torch.randn(50, 8)
    weight = torch.randn(3, 8, requires_grad=True)
    shared_input_linear(x.clone(), weight, codec="int4").sum().backward()
    with compress_activations(RMMConfig(rate=0.5)):
        torch.nn.functional.linear(x, weight).sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_relu_dropout_scales_the_gradient_as_the_output_in_low_precision(dtype):
    x = (torch.rand(1000) + 0.5).to(dtype).requires_grad_()
    out = relu_dropout(x, 0.1, seed=1)
    out.backward(x.detach())
    assert torch.equal(out, x.grad)
