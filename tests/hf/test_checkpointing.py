"""Activation checkpointing: the second pass over a block redraws the S of the first, and every step a fresh one."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")

from rmm_gnn.hf import apply_rmm
from tests.hf.models import batch, build, checkpointed, gradients

VARIANTS = pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])


def model_with(name: str, use_reentrant: bool | None, **settings):
    model = apply_rmm(with_dropout(build(name)), {"rate": 0.25}, **settings)
    return model if use_reentrant is None else checkpointed(model, use_reentrant)


def with_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return model


def seeded(model, name: str, seed: int = 7):
    torch.manual_seed(seed)
    return gradients(model, batch(name))


@VARIANTS
@pytest.mark.parametrize("share", [True, False], ids=["shared", "alone"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "deberta-v2"])
def test_gradients_are_those_without_checkpointing(name, share, use_reentrant):
    """Bit for bit: the same seeds reach the same layers, also where they share."""
    expected = seeded(model_with(name, None, share=share), name)
    found = seeded(model_with(name, use_reentrant, share=share), name)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[parameter], gradient) for parameter, gradient in expected.items())


@VARIANTS
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_whole_blocks_recompute_dropout_and_norms_as_they_were(name, use_reentrant):
    """At rate 1, with codecs that do not round, everything is exact but for dropout, which must be the same twice."""
    config = {"rate": 1.0, "sketch": "row_sampling", "norm_codec": "fp32", "act_codec": "fp32"}
    results = []
    for variant in (None, use_reentrant):
        model = apply_rmm(with_dropout(build(name)), config, whole_block=True)
        if variant is not None:
            checkpointed(model, variant)
        results.append(seeded(model, name))
    for parameter, gradient in results[0].items():
        torch.testing.assert_close(results[1][parameter], gradient, rtol=1e-3, atol=1e-5)


@VARIANTS
def test_every_step_draws_a_fresh_s(use_reentrant):
    model, weight = model_with("bert", use_reentrant), "bert.encoder.layer.0.attention.self.key.weight"
    steps = [gradients(model, batch("bert"))[weight] for _ in range(3)]
    assert not torch.equal(steps[0], steps[1]) and not torch.equal(steps[1], steps[2])


@VARIANTS
def test_where_blocks_share_a_tensor_the_mean_is_right(use_reentrant):
    """Keys and values of all of T5's decoder blocks read the encoder's output, which no block makes anew."""
    model, weight = model_with("t5", use_reentrant), "decoder.block.1.layer.1.EncDecAttention.v.weight"
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    exact = gradients(build("t5"), batch("t5"))[weight]
    draws = torch.stack([gradients(model, batch("t5"))[weight] for _ in range(16)])
    along = (draws * exact).sum((1, 2)) / exact.square().sum()
    sigma = along.std() / 16**0.5
    assert (along.mean() - 1).abs() < 5 * sigma < 0.5
