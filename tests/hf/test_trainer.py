"""``Trainer`` and ``accelerate`` train converted models as they train any, in all precisions."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils.data import DataLoader
from transformers import Trainer

from rmm_gnn import RMMConfig
from rmm_gnn.hf import RMMArguments, apply_rmm
from tests.hf.models import batch, build, checkpointed, gradients
from tests.hf.training import losses, rows, trainer

EXACT = {"rate": 1.0, "sketch": "row_sampling"}


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_training_steps(name, bf16, tmp_path):
    model = apply_rmm(build(name), {"rate": 0.25}, whole_block=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run = trainer(model, name, tmp_path, bf16=bf16)
    run.train()
    assert len(losses(run)) == 3 and all(math.isfinite(loss) for loss in losses(run))
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > 0.9 * len(before)


@pytest.mark.parametrize("use_reentrant", [None, True, False], ids=["kept", "reentrant", "hooks"])
def test_at_rate_1_a_run_is_the_plain_run(use_reentrant, tmp_path):
    """Accumulated over two batches, with checkpointing as the trainer switches it on."""
    settings = {"gradient_accumulation_steps": 2, "max_steps": 2}
    if use_reentrant is not None:
        settings |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    runs = []
    for convert in (False, True):
        model = build("bert")
        runs.append(trainer(apply_rmm(model, EXACT) if convert else model, "bert", tmp_path, **settings))
        runs[-1].train()
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-4)


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
def test_checkpointing_does_not_change_a_run(use_reentrant, tmp_path):
    """With S at a quarter of the rows: both passes over a block draw the same."""
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": use_reentrant}}
    runs = []
    for settings in ({}, kwargs):
        runs.append(trainer(apply_rmm(build("bert"), {"rate": 0.25}), "bert", tmp_path, **settings))
        runs[-1].train()
    assert losses(runs[0]) == losses(runs[1])


def test_a_run_is_saved_resumed_and_loaded_in_plain_transformers(tmp_path):
    whole = trainer(apply_rmm(build("bert"), {"rate": 0.25}), "bert", tmp_path / "a", max_steps=4)
    whole.train()
    half = trainer(
        apply_rmm(build("bert"), {"rate": 0.25}),
        "bert",
        tmp_path / "b",
        max_steps=4,
        save_strategy="steps",
        save_steps=2,
    )
    half.train()
    again = trainer(apply_rmm(build("bert", seed=9), {"rate": 0.25}), "bert", tmp_path / "c", max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    for name, parameter in again.model.named_parameters():
        torch.testing.assert_close(parameter, whole.model.get_parameter(name))
    again.save_model(str(tmp_path / "final"))
    loaded = type(build("bert")).from_pretrained(tmp_path / "final")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch("bert")).logits, again.model.eval()(**batch("bert")).logits)


def test_evaluation_is_that_of_the_plain_model(tmp_path):
    results = []
    for convert in (False, True):
        model = build("bert")
        run = trainer(apply_rmm(model, {"rate": 0.1}) if convert else model, "bert", tmp_path)
        results.append(run.evaluate()["eval_loss"])
    assert results[0] == results[1]


def test_arguments_of_the_command_line_reach_the_trainer(tmp_path):
    model = RMMArguments(rmm_config='{"rate": 0.25}').apply(build("bert"))
    run = trainer(model, "bert", tmp_path, max_steps=1)
    assert isinstance(run, Trainer)
    run.train()
    assert len(losses(run)) == 1


@pytest.fixture
def fresh_state():
    """``accelerate`` keeps the precision of the first accelerator for the whole process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("fresh_state")
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("use_reentrant", [None, True, False], ids=["kept", "reentrant", "hooks"])
def test_accelerate(precision, use_reentrant):
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    model = apply_rmm(build("bert"), RMMConfig(rate=0.25), whole_block=True)
    if use_reentrant is not None:
        checkpointed(model, use_reentrant)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model, optimizer, loader = accelerator.prepare(model, optimizer, DataLoader(rows("bert"), batch_size=4))
    before, seen = [p.detach().clone() for p in model.parameters()], []
    for inputs in loader:
        with accelerator.accumulate(model):
            loss = model(**inputs).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        seen.append(loss.item())
    assert all(math.isfinite(loss) for loss in seen)
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    assert type(accelerator.unwrap_model(model)) is type(build("bert"))


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "t5"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(name, dtype):
    """At rate 1, gradients are those of the stock model but for the rounding of its low type."""
    plain, ours = build(name), apply_rmm(build(name), EXACT)
    results = []
    for model in (plain, ours):
        with torch.autocast("cpu", dtype=dtype):
            loss = model(**batch(name)).loss
        (1024 * loss).backward()
        results.append((loss, {n: p.grad / 1024 for n, p in model.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-3, atol=1e-3)
    for parameter, gradient in results[0][1].items():
        assert results[1][1][parameter].dtype == torch.float32
        assert (results[1][1][parameter] - gradient).norm() < 0.1 * gradient.norm() + 1e-3, parameter


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_in_a_low_type(name, dtype):
    plain = gradients(build(name).to(dtype), batch(name))
    found = gradients(apply_rmm(build(name).to(dtype), EXACT), batch(name))
    for parameter, gradient in plain.items():
        assert found[parameter].dtype == dtype
        difference = (found[parameter] - gradient).float().norm()
        assert difference < 0.1 * gradient.float().norm() + 1e-3, parameter
