"""Checkpoints go both ways between models that are converted and plain ones, and ties hold."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch

pytest.importorskip("transformers")

from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from rmm_gnn.hf import apply_rmm, revert_rmm
from tests.hf.models import FAMILIES, batch, build, gradients

EVERY = pytest.mark.parametrize("name", FAMILIES)
TIED = {
    "bert-mlm": ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
    "gpt2": ("lm_head.weight", "transformer.wte.weight"),
    "llama": ("lm_head.weight", "model.embed_tokens.weight"),
    "t5": ("lm_head.weight", "shared.weight"),
}


def train(model, name: str, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        gradients(model, batch(name))
        optimizer.step()


def logits(model, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**batch(name)).logits


def keys_in(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


@EVERY
def test_what_is_saved_after_training_loads_in_plain_transformers(name, tmp_path):
    plain = build(name)
    plain(**batch(name))  # which notes the kind of its labels in its config
    plain.save_pretrained(tmp_path / "plain")
    model = apply_rmm(build(name), {"rate": 0.25, "codec": "int8"}, whole_block=True)
    before = logits(model, name)
    train(model.train(), name)
    model.save_pretrained(tmp_path / "ours")
    assert keys_in(tmp_path / "ours") == keys_in(tmp_path / "plain")
    settings = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("ours", "plain")]
    assert settings[0] == settings[1], "the checkpoint is one of the plain model"
    loaded = type(plain).from_pretrained(tmp_path / "ours")
    assert [type(module) for module in loaded.modules()] == [type(module) for module in plain.modules()]
    revert_rmm(model)
    assert torch.equal(logits(loaded, name), logits(model, name))
    assert not torch.equal(logits(loaded, name), before), "it was trained"


@EVERY
def test_a_plain_checkpoint_is_converted_after_loading(name, tmp_path):
    plain = build(name)
    plain.save_pretrained(tmp_path)
    model = apply_rmm(type(plain).from_pretrained(tmp_path), {"rate": 0.25})
    assert torch.equal(logits(model, name), logits(plain, name))
    gradients(model.train(), batch(name))


@EVERY
def test_state_dicts_go_both_ways(name):
    plain, ours = build(name, seed=0), apply_rmm(build(name, seed=1), {"rate": 0.25})
    ours.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(logits(ours, name), logits(plain, name))
    train(ours.train(), name)
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert torch.equal(logits(ours, name), logits(plain, name))


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("bert", AutoModelForSequenceClassification),
        ("gpt2", AutoModelForCausalLM),
        ("llama", AutoModelForCausalLM),
        ("t5", AutoModelForSeq2SeqLM),
    ],
)
def test_auto_classes_load_it(name, auto, tmp_path):
    model = apply_rmm(build(name), {"rate": 0.25})
    train(model, name, steps=1)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(auto.from_pretrained(tmp_path), name), logits(model, name))


@pytest.mark.parametrize("name", TIED)
def test_ties_hold_through_conversion_training_saving_and_loading(name, tmp_path):
    model, (one, other) = build(name), TIED[name]

    def tied(model) -> bool:
        return model.get_parameter(one) is model.get_parameter(other)

    assert tied(model)
    apply_rmm(model, {"rate": 0.25})
    assert tied(model)
    before = model.get_parameter(one).detach().clone()
    train(model, name)
    assert tied(model) and not torch.equal(model.get_parameter(one), before)
    model.save_pretrained(tmp_path)
    assert not {one, other} <= keys_in(tmp_path), "the tied weight is stored once"
    loaded = type(model).from_pretrained(tmp_path)
    assert tied(loaded) and torch.equal(loaded.get_parameter(one), model.get_parameter(one))
    model.tie_weights()
    assert tied(model)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_tied_weight_gets_the_dense_gradient_of_the_embedding_and_the_estimate(name):
    """The embedding's part is exact; what the linear layer adds is an estimate of the rest."""
    weight = TIED[name][1]
    exact = gradients(build(name), batch(name))[weight]
    model = apply_rmm(build(name), {"rate": 0.5}, exclude=None)
    draws = torch.stack([gradients(model, batch(name))[weight] for _ in range(20)])
    along = (draws * exact).sum((1, 2)) / exact.square().sum()
    sigma = along.std() / 20**0.5
    assert (along.mean() - 1).abs() < 5 * sigma < 0.5
    untied = gradients(apply_rmm(build(name), {"rate": 0.5}, exclude="output-head"), batch(name))[weight]
    torch.testing.assert_close(untied, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_copies_and_pickles_train_on_their_own(name):
    model = apply_rmm(build(name), {"rate": 0.25}, whole_block=True)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    ):
        assert [type(module) for module in other.modules()] == [type(module) for module in model.modules()]
        results = []
        for one in (model, other):
            torch.manual_seed(3)
            results.append(gradients(one, batch(name)))
        assert results[0].keys() == results[1].keys()
        assert all(torch.equal(results[0][parameter], results[1][parameter]) for parameter in results[0])
