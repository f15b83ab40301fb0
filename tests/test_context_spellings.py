"""The functions of ``torch`` behind those of ``torch.nn.functional`` are reached under their own names."""

import pytest
import torch
import torch.nn.functional as F

from rmm_gnn import RMMConfig, compress_activations
from tests.nn.recording import kept_storages, saved_tensors

ROWS, WIDTH = 256, 32


def spellings(gamma, beta, mean, variance):
    return {
        "batch_norm": (
            lambda x: torch.batch_norm(x, gamma, beta, mean.clone(), variance.clone(), True, 0.1, 1e-5, False),
            lambda x: F.batch_norm(x, mean.clone(), variance.clone(), gamma, beta, True),
        ),
        "layer_norm": (
            lambda x: torch.layer_norm(x, (WIDTH,), gamma, beta, 1e-5, False),
            lambda x: F.layer_norm(x, (WIDTH,), gamma, beta),
        ),
    }


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm"])
def test_normalisation_keeps_two_bits_and_returns_torchs_values(name):
    gamma, beta = torch.rand(WIDTH, requires_grad=True), torch.rand(WIDTH, requires_grad=True)
    mean, variance = torch.zeros(WIDTH), torch.ones(WIDTH)
    function, stock = spellings(gamma, beta, mean, variance)[name]
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with compress_activations(RMMConfig(norm_codec="int2")), saved_tensors() as saved:
        out = function(x)
    assert torch.equal(out, stock(x))
    statistics = 4 * (WIDTH if name == "batch_norm" else ROWS)
    assert sum(kept_storages(saved, besides=[gamma, beta]).values()) == ROWS * (WIDTH // 4 + 4) + statistics
    out.sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("name", ["batch_norm", "layer_norm"])
def test_batch_norm_keeps_a_share_of_the_rows_and_layer_norm_all(name):
    gamma, beta = torch.rand(WIDTH, requires_grad=True), torch.rand(WIDTH, requires_grad=True)
    function, stock = spellings(gamma, beta, torch.zeros(WIDTH), torch.ones(WIDTH))[name]
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    for spelling in (function, stock):
        with compress_activations(RMMConfig(norm_rate=0.25)), saved_tensors() as saved:
            spelling(x)
        rows, rest = (round(0.25 * ROWS), 4 * WIDTH + 8) if name == "batch_norm" else (ROWS, 4 * ROWS)
        assert sum(kept_storages(saved, besides=[gamma, beta]).values()) == rows * (WIDTH // 4 + 4) + rest


@pytest.mark.parametrize("function", [F.rms_norm, torch.rms_norm])
def test_rms_norm_keeps_two_bits_and_returns_torchs_values(function):
    gamma = torch.rand(WIDTH, requires_grad=True)
    x = torch.randn(ROWS, WIDTH, requires_grad=True)
    with compress_activations(RMMConfig(norm_codec="int2")), saved_tensors() as saved:
        out = function(x, (WIDTH,), gamma, 1e-6)
    torch.testing.assert_close(out, F.rms_norm(x, (WIDTH,), gamma, 1e-6))
    assert sum(kept_storages(saved, besides=[gamma]).values()) == ROWS * (WIDTH // 4 + 4) + 4 * ROWS
    out.sum().backward()
    assert x.grad is not None


def test_dropout_keeps_a_seed():
    x = torch.ones(ROWS, WIDTH, requires_grad=True)
    with compress_activations(), saved_tensors() as saved:
        out = torch.dropout(x, 0.25, True)
        assert torch.dropout(x, 0.25, False) is x
    assert sum(kept_storages(saved, besides=[]).values()) == 8
    out.sum().backward()
    assert torch.equal(out, x.grad)
