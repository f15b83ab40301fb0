"""Activations, dropout and normalisation of whole models: what they keep, that they compute what they did, and back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import Dropout, LayerNorm

pytest.importorskip("transformers")

from transformers.activations import ACT2FN

from rmm_gnn import RMMConfig, compress_activations, memory_report, revert_rmm
from rmm_gnn.codecs import get_codec
from rmm_gnn.hf import apply_rmm
from rmm_gnn.hf.activations import LEAN_ACTIVATIONS
from tests.hf.models import FAMILIES, batch, build, gradients
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

EXACT = RMMConfig(rate=1.0, sketch="row_sampling", norm_codec="fp32", act_codec="fp32")
CONFIG = RMMConfig(rate=0.25)
# Names of transformers for what is made lean, in all spellings.
NAMES = [
    "gelu",
    "gelu_python",
    "gelu_new",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_fast",
    "gelu_accurate",
    "quick_gelu",
    "silu",
]


def lean_of(name: str, config: RMMConfig):
    module = ACT2FN[name]
    module.__class__ = LEAN_ACTIVATIONS[type(module)]
    module.config = config
    return module


class TestActivations:
    def test_every_module_of_the_table_has_a_name_here(self):
        assert {type(ACT2FN[name]) for name in NAMES} == set(LEAN_ACTIVATIONS)

    @pytest.mark.parametrize("kind", LEAN_ACTIVATIONS.values())
    def test_the_constructor_is_that_of_the_stock_module(self, kind):
        ours, stock, x = kind(config=CONFIG), kind.stands_for(), torch.randn(20, 8)
        assert isinstance(ours, kind.stands_for) and "act_codec='int4'" in repr(ours)
        torch.testing.assert_close(ours(x), stock(x), rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_outputs_and_gradients_are_the_stock_ones(self, name, dtype):
        results = []
        for module in (ACT2FN[name], lean_of(name, EXACT)):
            x = torch.linspace(-6, 6, 400).view(20, 20).to(dtype).requires_grad_()
            out = module.train()(x)
            results.append((out, *torch.autograd.grad(out.square().sum(), x)))
            assert torch.equal(module.eval()(x), ACT2FN[name](x))
        tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
        torch.testing.assert_close(*results, **tolerance)

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_kept_is_the_derivative_in_its_codec(self, name):
        module, x = lean_of(name, CONFIG), torch.randn(40, 64, requires_grad=True)
        with saved_tensors() as saved:
            out = module(x)
        assert sum(kept_storages(saved, besides=[]).values()) == get_codec("int4").num_bytes(40, 64, torch.float32)
        assert out.requires_grad

    @pytest.mark.parametrize("name", ["gelu", "gelu_new", "quick_gelu"])
    def test_gradients_are_unbiased(self, name):
        module, x = lean_of(name, RMMConfig(act_codec="int2")), torch.randn(20, 16, requires_grad=True)

        def draw() -> Tensor:
            return torch.autograd.grad(module(x).square().sum(), x)[0]

        exact = torch.autograd.grad(ACT2FN[name](x).square().sum(), x)[0]
        assert_unbiased(draw, exact, draws=300)


class TestModels:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_nothing_stock_is_left_and_all_gradients_stay(self, name):
        plain, ours = build(name), apply_rmm(build(name), EXACT, whole_block=True)
        kinds = {type(module) for module in ours.modules()}
        assert not kinds & {Dropout, LayerNorm, *LEAN_ACTIVATIONS}
        assert kinds & set(LEAN_ACTIVATIONS.values())
        inputs = batch(name)
        torch.testing.assert_close(ours(**inputs).loss, plain(**inputs).loss, rtol=1e-5, atol=1e-6)
        expected, found = gradients(plain, inputs), gradients(ours, inputs)
        assert expected.keys() == found.keys()
        for parameter, gradient in expected.items():
            torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
    def test_compress_activations_changes_nothing_more(self, name):
        """Its functions are those that the modules call already."""
        results = []
        for inside in (False, True):
            model = apply_rmm(build(name), CONFIG, whole_block=True)
            for module in model.modules():
                if isinstance(module, Dropout):
                    module.p = 0.1
            torch.manual_seed(4)
            with compress_activations(CONFIG) if inside else torch.enable_grad():
                loss = model(**batch(name)).loss
            loss.backward()
            results.append((loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        assert torch.equal(results[0][0], results[1][0])
        for parameter, gradient in results[0][1].items():
            assert torch.equal(results[1][1][parameter], gradient), parameter

    def test_a_whole_block_keeps_far_less(self):
        """Of BERT, attention itself remains, which is a function without a lean form here."""
        kept = {}
        for kind in ("stock", "linear", "block"):
            model = build("bert")
            for module in model.modules():
                if isinstance(module, Dropout):
                    module.p = 0.1
            if kind != "stock":
                apply_rmm(model, CONFIG, whole_block=kind == "block")
            report = memory_report(model, **batch("bert"), loss_fn=lambda out: out.loss)
            kept[kind] = report.saved_bytes - report.by_operator()["scaled_dot_product_attention"]
        assert kept["block"] < 0.35 * kept["linear"] < 0.35 * kept["stock"]

    def test_patterns_decide_about_modules_too(self):
        config = {r".*layer\.0\..*": RMMConfig(norm_codec="int8"), r".*layer\.1\..*": None, ".*": CONFIG}
        model = apply_rmm(build("bert"), config, whole_block=True)
        first, second = model.bert.encoder.layer
        assert first.output.LayerNorm.config.norm_codec == "int8"
        assert type(second.output.LayerNorm) is LayerNorm
        assert model.bert.embeddings.LayerNorm.config.norm_codec == "int2"
        revert_rmm(model)
        assert {type(module) for module in model.modules()} == {type(module) for module in build("bert").modules()}
