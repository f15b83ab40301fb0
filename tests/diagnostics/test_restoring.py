"""A report leaves no trace in the model, the gradients or the random numbers, also after an exception."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch
from torch import nn
from torch_geometric.nn import GCNConv

from rmm_gnn.diagnostics import memory_report
from tests.diagnostics.models import C, Expression, GCN2Stack, N, adjacency, edges, features


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("backward, on purpose")


class Witness:
    """Lives as long as the graph that holds it."""


class Keeping(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, witness):
        ctx.witness = witness
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class Restless(nn.Module):
    """Changes all that a forward pass can change about a module."""

    def __init__(self, fail: str | None = None) -> None:
        super().__init__()
        self.net = GCN2Stack()
        self.register_buffer("rebound", torch.zeros(3))
        self.leaf = torch.ones(C, requires_grad=True)
        self.calls = 0
        self.fail = fail

    def forward(self, x, matrix):
        self.calls += 1
        self.rebound = self.rebound + 1
        self.added = x
        self.net.norms[0].momentum = 0.5
        out = self.net(x, matrix) * self.leaf
        self.eval()
        if self.fail == "forward":
            raise RuntimeError("forward, on purpose")
        return Failing.apply(out) if self.fail == "backward" else out


def hooks_of(model):
    return [
        (dict(module._forward_hooks), dict(module._forward_pre_hooks), dict(module._forward_hooks_always_called))
        for module in model.modules()
    ]


@pytest.mark.parametrize("fail", [None, "forward", "backward"])
def test_everything_is_as_it_was(fail):
    model, x, matrix = Restless(fail), features().requires_grad_(), adjacency()
    model.net.lin.register_forward_hook(lambda module, args, output: None)
    model.net.norms[1].eval()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    model.net.lin.bias.grad = None
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    objects = dict(model.named_buffers())
    gradients = [parameter.grad for parameter in model.parameters()]
    modes, hooks = [module.training for module in model.modules()], hooks_of(model)
    generator = torch.get_rng_state()

    if fail is None:
        assert memory_report(model, x, matrix).gradient_bytes > 0
    else:
        with pytest.raises(RuntimeError, match=f"{fail}, on purpose"):
            memory_report(model, x, matrix)

    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert all(buffer is objects[name] for name, buffer in model.named_buffers())
    assert all(p.grad is found for p, found in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(grad, torch.ones_like(grad)) for grad in gradients if grad is not None)
    assert x.grad is None and model.leaf.grad is None
    assert [module.training for module in model.modules()] == modes
    assert hooks_of(model) == hooks
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.calls == 0 and not hasattr(model, "added") and model.net.norms[0].momentum == 0.1


def test_caches_are_dropped_and_count_as_the_models_own():
    conv = GCNConv(C, C, cached=True)
    graph = edges()
    report = memory_report(conv, features(), graph)
    assert conv._cached_edge_index is None
    fresh = memory_report(GCNConv(C, C), features(), graph)
    assert report.saved_bytes == 0 and report.saved_parameter_bytes == fresh.saved_bytes > 0


def test_modes_are_closed_after_an_exception():
    with pytest.raises(RuntimeError, match="on purpose"):
        memory_report(Restless("forward"), features(), adjacency())
    kept = torch.ones(3, requires_grad=True).exp()
    assert isinstance(kept.grad_fn._raw_saved_result.data, torch.Tensor)  # no hook packs it
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("fail", [None, "forward"])
def test_no_activation_outlives_the_report(fail):
    """Reference counts alone must free them: what waits for the garbage collector takes memory meanwhile."""
    graphs = []

    def forward(self, x):
        graphs.append(weakref.ref(witness := Witness()))
        out = Keeping.apply(self.lin(x).sigmoid(), witness).exp()
        if fail:
            raise RuntimeError("forward, on purpose")
        return out

    gc.disable()
    try:
        with contextlib.suppress(RuntimeError):
            memory_report(Expression(forward, lin=nn.Linear(C, C)), features())
        assert len(graphs) == (1 if fail else 3) and not any(reference() for reference in graphs)
    finally:
        gc.enable()


def test_the_same_report_twice_and_the_same_training_as_without():
    def train(with_reports):
        torch.manual_seed(0)
        model, x, matrix = GCN2Stack(), features(), adjacency()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        reports = []
        for _ in range(2):
            if with_reports:
                reports.append(memory_report(model, x, matrix, optimizer=optimizer))
            optimizer.zero_grad()
            model(x, matrix).square().mean().backward()
            optimizer.step()
        return reports, model.state_dict()

    (first, second), with_reports = train(True)
    _, without = train(False)
    assert first == second
    assert all(torch.equal(with_reports[name], without[name]) for name in without)


def test_a_hook_that_would_step_is_refused():
    model = nn.Linear(C, C)
    model.weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(
        ValueError, match=r"'model' must not have hooks that run after a gradient .*'weight'.*remove them"
    ):
        memory_report(model, features())


def test_random_sizes_are_the_same_in_every_pass():
    """Were other numbers drawn in the measured pass, kept and held bytes would differ."""

    def forward(self, x):
        return (self.lin(x) * 1)[torch.rand(N) < 0.5].exp()

    report = memory_report(Expression(forward, lin=nn.Linear(C, C)), features())
    index = next(entry for entry in report.entries if entry.operator == "getitem")
    assert 0 <= report.held_bytes - report.saved_bytes < 1024 and index.saved_bytes < report.saved_bytes
