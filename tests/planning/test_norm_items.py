"""Normalisation layers are decided one by one: bytes are those kept, noise follows the variance of the code."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rmm_gnn import RMMConfig, convert_to_rmm, memory_report, plan
from rmm_gnn.autograd.sketched_norm import encode_sketch, iter_estimates, kept_rows
from rmm_gnn.codecs import get_codec
from rmm_gnn.planning.norm_items import NormItem, SeenNorm, watch_norms

N, C = 400, 16
CODES = [("int8", 1.0), ("int2", 1.0), ("int1", 1.0), ("int4", 0.5), ("int2", 0.25), ("int1", 0.06)]


def features(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def read(layer, *inputs):
    seen: dict[str, SeenNorm] = {}
    model = convert_to_rmm(nn.Sequential(layer), RMMConfig(), lean=True)
    handles = list(watch_norms(model, seen))
    for x in inputs:
        model(x)
    for handle in handles:
        handle.remove()
    return seen["0"], model


@pytest.mark.parametrize(("codec", "rate"), CODES)
@pytest.mark.parametrize("shape", [(N, C), (N, 4, 5)])
def test_bytes_are_those_that_the_layer_keeps(codec, rate, shape):
    x = features(*shape).requires_grad_()
    seen, model = read(nn.BatchNorm1d(shape[1]), x)
    model[0].config = RMMConfig(norm_codec=codec, norm_rate=rate)
    kept = memory_report(model, x).saved_bytes
    assert kept == seen.saved_bytes(codec, rate) + 4 * shape[1]  # 1/sigma, whatever the code


@pytest.mark.parametrize(("codec", "rate"), CODES)
def test_variance_is_that_of_what_is_read_back(codec, rate):
    """Monte Carlo over the operator's own way of reading back; a tenth off, and it would not pass."""
    x = features(N, C) * 3 + 1
    seen, _ = read(nn.BatchNorm1d(C), x)
    normalized = (x - x.mean(0)) / x.std(0, correction=0)
    found, draws = 0.0, 60
    for number in range(draws):
        seed, size = torch.tensor(number), kept_rows(rate, N)
        estimate = torch.empty_like(normalized)
        if rate == 1.0:
            payload = get_codec(codec).encode_matrix(normalized, seed)
            estimate = get_codec(codec).decode(payload, 0, N, C, torch.float32)
        else:
            payload = get_codec(codec).empty(size, C, torch.float32, torch.device("cpu"))
            encode_sketch(x, x.mean(0), 1 / x.std(0, correction=0), payload, get_codec(codec), size, seed, "auto")
            for rows, tile in iter_estimates(payload, x, get_codec(codec), size, seed, 1 << 20, "auto"):
                estimate[rows.long()] = tile
        found += float((estimate - normalized).square().mean()) / draws
    assert seen.variance(codec, rate) == pytest.approx(found, rel=0.07)


def test_layers_of_rows_offer_no_sketches_and_each_call_counts():
    seen, _ = read(nn.LayerNorm(C), features(N, C), features(N, C))
    item = NormItem(("0",), seen, noise_per_variance=2.0)
    assert {choice["norm_rate"] for choice, _ in item.choices(RMMConfig())} == {1.0}
    once, _ = read(nn.LayerNorm(C), features(N, C))
    assert seen.saved_bytes("int2", 1.0) == 2 * once.saved_bytes("int2", 1.0)
    batch, _ = read(nn.BatchNorm1d(C), features(N, C))
    assert any(choice["norm_rate"] < 1 for choice, _ in NormItem(("0",), batch, 2.0).choices(RMMConfig()))
    assert item.cost("int1", 1.0).noise == 2.0 * seen.variance("int1", 1.0)


class Mixed(nn.Module):
    """One normalisation as a layer, which runs twice, and one as a function."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, 3)
        self.norm = nn.BatchNorm1d(C)

    def forward(self, x):
        x = self.norm(self.one(x)).relu()
        x = self.norm(self.two(x)).relu()
        return self.three(F.batch_norm(x, None, None, training=True))


@pytest.mark.parametrize("budget", ["12%", "25%"])
def test_layers_and_functions_in_one_model(budget):
    torch.manual_seed(0)
    model, x = Mixed(), features(N, C)
    made = plan(model, x, lambda out: out.square().mean(), budget=budget)
    named = {row.layers for row in made.rows}
    assert ("norm",) in named and ("normalisation (functions)",) in named
    prepared = made.apply(copy.deepcopy(model))
    with made.context(x):
        report = memory_report(prepared, x, loss_fn=lambda out: out.square().mean())
    assert report.saved_bytes == made.saved_bytes


def test_a_tight_budget_sketches_the_rows_of_a_normalisation():
    torch.manual_seed(0)
    model, x = Mixed(), features(N, C)
    made = plan(model, x, lambda out: out.square().mean(), budget="9%")
    assert made.configs["norm"].norm_rate < 1
    assert "norm " in str(made) and "rate" in next(row.setting for row in made.rows if row.layers == ("norm",))
