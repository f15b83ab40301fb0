"""The network and loss of the protocol."""

from __future__ import annotations

import math

import pytest
import torch
from torch_geometric.nn import GCN2Conv

from benchmarks.harness.config import Sweep
from benchmarks.harness.model import GCN2, robust_loss
from benchmarks.harness.train import build_model


def test_the_protocol_has_2148648_parameters(protocol: Sweep):
    run = protocol.expand("", "cpu")[0]
    model = build_model(run, 128, 40)
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_148_648
    assert len(model.convs) == 16
    for conv in model.convs:
        assert type(conv) is GCN2Conv
        assert (conv.alpha, conv.beta, conv.normalize) == (0.5, 1.0, False) and conv.weight2 is not None


def test_protocol_defaults(protocol: Sweep):
    expected = {
        "dataset": "ogbn-arxiv", "epochs": 1000, "eval_every": 1, "layers": 16, "hidden": 256, "alpha": 0.5,
        "theta": None, "shared_weights": False, "dropout": 0.1, "lr": 1e-3, "weight_decay": 0.0, "clip": 0.5, "runs": 3,
    }  # fmt: skip
    assert {name: getattr(protocol, name) for name in expected} == expected


def test_forward_is_the_written_formula(tiny):
    torch.manual_seed(0)
    model = GCN2(5, 8, 3, num_layers=2, dropout=0.5).eval()
    adjacency = tiny.adjacency.to_dense()
    x_0 = x = (tiny.x @ model.lin_in.weight.T + model.lin_in.bias).relu()
    for conv in model.convs:
        # alpha = 1/2 and beta = 1; in evaluation a fresh BatchNorm divides by sqrt(1 + eps).
        out = 0.5 * adjacency @ x @ conv.weight1 + 0.5 * x_0 @ conv.weight2
        x = (out / math.sqrt(1 + 1e-5) + x).relu()
    expected = x @ model.lin_out.weight.T + model.lin_out.bias
    torch.testing.assert_close(model(tiny.x, tiny.adjacency), expected, rtol=1e-4, atol=1e-5)


def test_dropout_acts_in_training_only(tiny):
    model = GCN2(5, 8, 3, num_layers=1, dropout=0.5)
    assert not torch.equal(model(tiny.x, tiny.adjacency), model(tiny.x, tiny.adjacency))
    model.eval()
    assert torch.equal(model(tiny.x, tiny.adjacency), model(tiny.x, tiny.adjacency))


def test_theta_decreases_with_depth():
    model = GCN2(5, 8, 3, num_layers=3, theta=0.5, shared_weights=True)
    assert [conv.beta for conv in model.convs] == pytest.approx([math.log(0.5 / i + 1) for i in (1, 2, 3)])
    assert all(conv.weight2 is None for conv in model.convs)


def test_loss_formula():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, -1.0]])
    y = torch.tensor([0, 0, 1])
    eps = 1 - math.log(2)
    cross_entropy = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(1)), math.log(1 + math.exp(4))]
    expected = sum(math.log(eps + value) - math.log(eps) for value in cross_entropy) / 3
    assert robust_loss(logits, y).item() == pytest.approx(expected, rel=1e-6)


def test_loss_is_zero_at_zero_cross_entropy():
    assert robust_loss(torch.tensor([[100.0, -100.0]]), torch.tensor([0])).item() == pytest.approx(0, abs=1e-6)


def test_running_statistics_are_those_of_the_last_batch_at_momentum_one(make_run, tiny):
    model = build_model(make_run(bn_momentum=1.0, dropout=0.0), tiny.x.shape[1], tiny.num_classes)
    seen = []
    model.norms[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    for _ in range(2):
        model(tiny.x, tiny.adjacency)
    torch.testing.assert_close(model.norms[0].running_mean, seen[-1].mean(0))


def test_checkpointing_changes_no_value(tiny):
    """Dropout replays, and the running statistics move once a step, although every block runs twice."""
    models = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = GCN2(5, 8, 3, num_layers=3, dropout=0.5)
        model.checkpoint = checkpoint
        for _ in range(2):
            robust_loss(model(tiny.x, tiny.adjacency), tiny.y).backward()
        models.append(model)
    stock, checkpointed = models
    state = checkpointed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in stock.state_dict().items())
    for (name, parameter), other in zip(stock.named_parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name
    assert checkpointed.norms[0].momentum == 0.1


def test_evaluation_checkpoints_nothing(tiny, monkeypatch):
    monkeypatch.setattr("benchmarks.harness.model.checkpoint", None)
    model = GCN2(5, 8, 3, num_layers=1).eval()
    model.checkpoint = True
    assert model(tiny.x, tiny.adjacency).isfinite().all()
