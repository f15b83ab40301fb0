"""LoRA: frozen bases keep nothing, the adapters' matrices keep sketches, before or after peft has wrapped the model."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("peft")

import peft

from rmm_gnn import RMMConfig, memory_report
from rmm_gnn.hf import RMMConv1D, apply_rmm, revert_rmm
from rmm_gnn.nn import RMMTorchLinear
from tests.hf.models import BATCH, HIDDEN, LENGTH, batch, build, checkpointed, gradients

CONFIG = RMMConfig(rate=0.25)
ROWS, RANK = BATCH * LENGTH, 4
TARGETS = {"bert": ["query", "key", "value"], "llama": ["q_proj", "k_proj", "v_proj"], "gpt2": ["c_attn"]}
EVERY = pytest.mark.parametrize("name", TARGETS)
ORDERS = pytest.mark.parametrize("order", ["before", "after"])


def with_lora(model, name: str, dropout: float = 0.0):
    torch.manual_seed(1)
    settings = peft.LoraConfig(
        r=RANK, target_modules=TARGETS[name], lora_dropout=dropout, fan_in_fan_out=name == "gpt2"
    )
    model = peft.get_peft_model(model, settings)
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:  # of zeros, which would leave nothing to estimate in lora_A
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def adapted(name: str, order: str, config=CONFIG, **settings):
    if order == "before":
        return apply_rmm(with_lora(apply_rmm(build(name), config), name, **settings), config)
    return apply_rmm(with_lora(build(name), name, **settings), config)


def kept(model, name: str) -> dict[str, int]:
    """Bytes that operators of linear layers keep, by module."""
    report = memory_report(model, **batch(name), loss_fn=lambda out: out.loss)
    found: dict[str, int] = {}
    for entry in report.entries:
        if entry.operator.startswith("rmm_gnn.linear"):
            found[entry.module] = found.get(entry.module, 0) + entry.saved_bytes
    return found


@EVERY
@ORDERS
def test_bases_keep_nothing_and_the_adapters_share_one_sketch(name, order):
    model = adapted(name, order)
    sketches = kept(model, name)
    assert sketches and all("lora_" in module for module in sketches)
    of_a = [size for module, size in sketches.items() if "lora_A" in module]
    of_b = [size for module, size in sketches.items() if "lora_B" in module]
    # Of each of two blocks: one sketch of what the targets read, and one of what each B reads.
    assert sorted(of_a) == [CONFIG.saved_bytes(ROWS, HIDDEN)] * 2
    assert sorted(of_b) == [CONFIG.saved_bytes(ROWS, RANK)] * 2 * len(TARGETS[name])


@EVERY
def test_base_and_adapters_are_of_our_classes(name):
    model = adapted(name, "after")
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            assert type(module.base_layer) is (RMMConv1D if name == "gpt2" else RMMTorchLinear)
            assert type(module.lora_A["default"]) is type(module.lora_B["default"]) is RMMTorchLinear


@EVERY
@ORDERS
def test_loss_and_gradients_are_those_of_plain_lora(name, order):
    """At rate 1 all of them; the loss at any rate."""
    plain = with_lora(build(name), name)
    expected = gradients(plain, batch(name))
    assert all("lora_" in parameter for parameter in expected)
    exact = adapted(name, order, {"rate": 1.0, "sketch": "row_sampling"})
    found = gradients(exact, batch(name))
    assert found.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient, rtol=1e-3, atol=1e-6)
    assert torch.equal(adapted(name, order)(**batch(name)).loss, plain(**batch(name)).loss)


def test_with_dropout_each_adapter_sketches_what_it_reads():
    """Each of the targets drops out on its own, so there is nothing to share."""
    sketches = kept(adapted("bert", "after", dropout=0.3), "bert")
    of_a = [size for module, size in sketches.items() if "lora_A" in module]
    assert of_a == [CONFIG.saved_bytes(ROWS, HIDDEN)] * 6


def test_an_adapter_in_another_type_sketches_what_it_reads():
    """The base in bfloat16, the adapters in float32: A reads a converted copy."""
    torch.manual_seed(0)
    model = with_lora(build("llama").to(torch.bfloat16), "llama")
    apply_rmm(model, CONFIG)
    assert {p.dtype for n, p in model.named_parameters() if "lora_" in n} == {torch.float32}
    sketches = kept(model, "llama")
    of_a = {size for module, size in sketches.items() if "lora_A" in module}
    assert of_a == {CONFIG.saved_bytes(ROWS, HIDDEN, torch.float32)}
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model, batch("llama")).values())


@pytest.mark.parametrize(("name", "order"), [("bert", "after"), ("gpt2", "before")])
def test_estimates_of_the_adapters_are_unbiased(name, order):
    weight = next(n for n, p in with_lora(build(name), name).named_parameters() if "lora_A" in n)
    exact = gradients(with_lora(build(name), name), batch(name))[weight]
    model = adapted(name, order, {"rate": 0.5})
    draws = torch.stack([gradients(model, batch(name))[weight] for _ in range(25)])
    along = (draws * exact).sum((1, 2)) / exact.square().sum()
    sigma = along.std() / 25**0.5
    assert (along.mean() - 1).abs() < 5 * sigma < 0.5


@EVERY
@ORDERS
def test_merging_gives_the_base_model_back(name, order):
    model, plain = adapted(name, order), with_lora(build(name), name)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    gradients(model, batch(name))
    optimizer.step()
    plain.load_state_dict(model.state_dict())
    merged, expected = model.merge_and_unload(), plain.merge_and_unload()
    assert {type(module) for module in merged.modules()} & {RMMTorchLinear, RMMConv1D}
    with torch.no_grad():
        assert torch.equal(merged.eval()(**batch(name)).logits, expected.eval()(**batch(name)).logits)
    revert_rmm(merged)
    assert [type(module) for module in merged.modules()] == [type(module) for module in expected.modules()]


@EVERY
@ORDERS
def test_adapters_are_saved_and_load_in_plain_peft(name, order, tmp_path):
    model = adapted(name, order)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(build(name), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch(name)).logits, model.eval()(**batch(name)).logits)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
def test_checkpointing(use_reentrant):
    results = []
    for again in (False, True):
        model = adapted("llama", "after")
        if again:
            model.enable_input_require_grads()
            checkpointed(model.base_model.model, use_reentrant)
        torch.manual_seed(5)
        results.append(gradients(model, batch("llama")))
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][parameter], results[1][parameter]) for parameter in results[0])


def test_peft_finds_converted_layers_by_itself():
    settings = peft.LoraConfig(r=RANK, target_modules="all-linear", task_type="SEQ_CLS")
    expected = peft.get_peft_model(build("bert"), settings).state_dict().keys()
    assert peft.get_peft_model(apply_rmm(build("bert"), CONFIG), settings).state_dict().keys() == expected


def test_a_target_of_the_adapter_stands_for_all_in_it():
    """After peft has wrapped it, ``query`` is no linear layer but holds the base and both matrices."""
    model = apply_rmm(with_lora(build("bert"), "bert"), CONFIG, ["query"])
    converted = [name for name, module in model.named_modules() if type(module) is RMMTorchLinear]
    ends = {name.split("query.")[1] for name in converted}
    assert len(converted) == 6 and ends == {"base_layer", "lora_A.default", "lora_B.default"}


def test_the_head_of_a_wrapped_model_is_found():
    settings = peft.LoraConfig(r=RANK, target_modules=["query"], task_type="SEQ_CLS")
    model = apply_rmm(peft.get_peft_model(build("bert"), settings), CONFIG, exclude="output-head")
    converted = [name for name, module in model.named_modules() if type(module) is RMMTorchLinear]
    assert converted and not any("classifier" in name for name in converted)
