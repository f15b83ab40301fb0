"""What each method keeps exact, and which rows it sketches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.text.methods import apply_method
from benchmarks.text.run_config import TextRun
from benchmarks.text.tasks import TASKS
from benchmarks.text.train import build_model
from rmm_gnn import GradientProbe, memory_report
from rmm_gnn.diagnostics import check_row_masks
from rmm_gnn.nn import RMMTorchLinear
from tests.benchmarks.text.conftest import prepare

pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("small")

CPU = torch.device("cpu")
HEAD = ("classifier.dense.weight", "classifier.out_proj.weight")


def gradients(run: TextRun, data, source, *, dropout: bool = False) -> dict[str, torch.Tensor]:
    """Of the run's first weights, on 32 examples of different lengths."""
    model, forward = build_model(run, source)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    inputs, targets = data.train.batch(list(range(32)), CPU)
    model.train()
    torch.manual_seed(5)
    torch.nn.functional.cross_entropy(forward(inputs), targets).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("method", ["rmm", "rmm-lean"])
def test_excluded_layers_are_exact(method: str, smoke):
    sweep = smoke(rate=(None, 0.1), method=(method,), attention_dropout=0.0)
    data, source = prepare(sweep)
    baseline, run = sweep.expand("sst2", "cpu")
    exact = gradients(baseline, data, source)
    sketched = gradients(run, data, source)
    excluded = gradients(replace(run, exclude="classifier.*"), data, source)
    dense = "roberta.encoder.layer.0.output.dense.weight"
    for name in HEAD:
        assert torch.allclose(excluded[name], exact[name], rtol=1e-4, atol=1e-7)
        assert not torch.allclose(sketched[name], exact[name], rtol=1e-2)
    assert not torch.allclose(excluded[dense], exact[dense], rtol=1e-2)


def test_exclude_says_what_it_wants(smoke):
    sweep = smoke(exclude="classifier.*", rate=(0.1,))
    _, source = prepare(sweep)
    run, model = sweep.expand("sst2", "cpu")[0], source.build(2, 0)
    apply_method(model, run)
    swapped = {name for name, module in model.named_modules() if isinstance(module, RMMTorchLinear)}
    linear = {name for name, module in source.build(2, 0).named_modules() if isinstance(module, torch.nn.Linear)}
    assert swapped == {name for name in linear if not name.startswith("classifier")} and len(swapped) == 6
    with pytest.raises(ValueError, match=r"'exclude' must match .*\(got 'head\.\*'\)"):
        apply_method(source.build(2, 0), replace(run, exclude="head.*"))


@pytest.mark.parametrize("row", [0, 1])
def test_padding_is_not_sketched_with_a_row_mask(row: int, smoke):
    sweep = smoke(rate=(0.5,), attention_dropout=0.0)
    data, source = prepare(sweep)
    whole = sweep.expand("sst2", "cpu")[row]
    masked = smoke(rate=(0.5,), attention_dropout=0.0, row_mask="on").expand("sst2", "cpu")[row]
    inputs, _ = data.train.batch(list(range(32)), CPU)
    tokens, rows = int(inputs["attention_mask"].sum()), inputs["attention_mask"].numel()
    assert tokens < 0.9 * rows
    kept = {}
    for run in (whole, masked):
        model, forward = build_model(run, source)
        report = memory_report(_Step(model, forward, list(inputs)), *inputs.values())
        kept[run.row_mask] = {
            name.removeprefix("model."): size for name, size in report.by_module().items() if "dense" in name
        }
    # Sketches of 64 columns in fp32: of half of the rows, or of half of the tokens.
    name = "roberta.encoder.layer.0.intermediate.dense"
    saved = kept[False][name] - kept[True][name]
    assert saved == pytest.approx((round(0.5 * rows) - round(0.5 * tokens)) * 64 * 4, abs=rows + 64)
    # Of the first tokens alone there is no padding.
    assert kept[True]["classifier.dense"] == kept[False]["classifier.dense"]
    probe = GradientProbe(model, layers=[f"{name}.weight"], every=1)
    forward(inputs).square().mean().backward()
    assert [(record.num_rows, record.sketch_size) for record in probe.records] == [(tokens, round(0.5 * tokens))]
    with check_row_masks():  # raises where padding has a gradient, which a sketch without it would lose
        gradients(masked, data, source, dropout=True)


@pytest.mark.parametrize("method", ["rmm", "rmm-lean"])
def test_all_rows_of_tokens_are_all_that_the_gradient_needs(method: str, smoke):
    given = {"method": (method,), "attention_dropout": 0.0, "norm_codec": "fp32", "act_codec": "fp32"}
    sweep = smoke(rate=(None, 1.0), row_mask="on", **given)
    data, source = prepare(sweep)
    exact, found = (gradients(run, data, source) for run in sweep.expand("sst2", "cpu"))
    assert found.keys() == exact.keys()
    for name, gradient in exact.items():
        assert torch.allclose(found[name], gradient, rtol=1e-3, atol=1e-6), name


class _Step(torch.nn.Module):
    def __init__(self, model, forward, names: list[str]) -> None:
        super().__init__()
        self.model, self._forward, self._names = model, forward, names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._forward(dict(zip(self._names, inputs, strict=True)))


def test_a_masked_run_is_another_run_and_one_without_keeps_its_key(smoke):
    on, off = (smoke(row_mask=word).expand("sst2", "cpu") for word in ("on", "off"))
    assert on[0].key == off[0].key and on[1].key != off[1].key
    assert on[1].settings == "count_sketch 0.5 fp32 of tokens" and off[1].settings == "count_sketch 0.5 fp32"
    assert replace(off[1], row_mask=None).key == off[1].key
    assert TASKS[on[1].task].name == "sst2"
