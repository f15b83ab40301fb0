"""One run: pairing, learning, what is measured beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import pytest
import torch

from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.batches import endless_batches
from benchmarks.text.config import TextSweep
from benchmarks.text.data import Encoded
from benchmarks.text.evaluate import Evaluation, evaluate, loss_of
from benchmarks.text.noise import probed_layer
from benchmarks.text.precision import Precision
from benchmarks.text.tasks import TASKS
from benchmarks.text.train import build_model, steps_of, train
from rmm_gnn import RMMConfig
from rmm_gnn.diagnostics import alignment, paper_rmm_variance, rmm_variance, sgd_variance
from tests.benchmarks.text.conftest import prepare

pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("small")

CPU = torch.device("cpu")


def test_rows_share_initial_weights_and_batches(smoke: Callable[..., TextSweep], monkeypatch):
    sweep = smoke(max_steps=5, epochs=2, eval_every_steps=100)
    data, source = prepare(sweep)
    seen: list[list[int]] = []
    batch = Encoded.batch
    monkeypatch.setattr(
        Encoded, "batch", lambda self, indices, device: seen.append(indices) or batch(self, indices, device)
    )
    orders, weights = [], []
    runs = [
        *sweep.expand("sst2", "cpu"),
        smoke(seed=1, max_steps=5, epochs=2, eval_every_steps=100).expand("sst2", "cpu")[0],
    ]
    assert [run.method for run in runs] == ["baseline", "rmm", "rmm-lean", "baseline"]
    for run in runs:
        weights.append(build_model(run, source)[0].state_dict())
        seen.clear()
        train(run, data, quiet=True)
        orders.append(seen[:6])  # the batch that memory is measured on, and the steps
    assert orders[0] == orders[1] == orders[2] != orders[3] and orders[0][0] == list(range(32)) == orders[3][0]
    for other in weights[1:3]:
        assert other.keys() == weights[0].keys()
        assert all(torch.equal(value, weights[0][name]) for name, value in other.items())
    assert not torch.equal(weights[3]["classifier.dense.weight"], weights[0]["classifier.dense.weight"])


def test_a_run_is_replayed_by_its_seed(smoke):
    sweep = smoke(max_steps=3)
    data, _ = prepare(sweep)
    run = sweep.expand("sst2", "cpu")[2]
    first, second = train(run, data, quiet=True), train(run, data, quiet=True)
    assert first.curves == second.curves and first.results["metrics"] == second.results["metrics"]


@pytest.mark.parametrize("row", [0, 1, 2])
def test_every_method_learns_the_mood_of_sentences(row: int, smoke):
    sweep = smoke(max_steps=60, epochs=10, batch_size=8, lr=3e-3, eval_every_steps=30)
    data, _ = prepare(sweep)
    result = train(sweep.expand("sst2", "cpu")[row], data, quiet=True)
    assert result.results["score"] >= 90  # 50 by chance
    assert result.curves["step"] == [30, 60] and result.results["steps"] == 60
    assert result.curves["train_loss"][1] < result.curves["train_loss"][0]
    assert result.results["best_step"] in (30, 60) and result.memory is None and result.noise is None


def test_the_best_evaluation_counts(smoke, monkeypatch):
    import benchmarks.text.training as module

    scores = iter([40.0, 70.0, 70.0, 60.0])

    def scripted(*arguments: object):
        score = next(scores)
        return Evaluation(score, {"accuracy": score / 100}, 0.5, False)

    monkeypatch.setattr(module, "evaluate", scripted)
    sweep = smoke(max_steps=4, epochs=2, eval_every_steps=1)
    data, _ = prepare(sweep)
    results = train(sweep.expand("sst2", "cpu")[0], data, quiet=True).results
    assert (results["score"], results["best_step"]) == (70.0, 2)
    assert results["metrics"] == {"accuracy": 0.7} and results["last_metrics"] == {"accuracy": 0.6}


def test_what_a_sketch_saves_in_a_step(smoke, full_size):
    sweep = smoke(max_steps=1, rate=(None, 0.9, 0.1))
    data, _ = prepare(sweep)
    found = {(run.method, run.rate): train(run, data, quiet=True).results for run in sweep.expand("sst2", "cpu")}
    saved = {row: results["saved_bytes"] for row, results in found.items()}
    base = saved[("baseline", None)]
    assert saved[("rmm-lean", 0.1)] < saved[("rmm", 0.1)] < saved[("rmm", 0.9)] < 1.1 * base
    assert saved[("rmm", 0.1)] < 0.85 * base and saved[("rmm-lean", 0.1)] < 0.45 * base
    peaks = {row: results["peak_bytes"] for row, results in found.items()}
    assert all(peaks[row] > saved[row] for row in saved)
    assert peaks[("rmm-lean", 0.1)] < peaks[("rmm", 0.1)] < peaks[("baseline", None)]
    assert "profiler" in found[("rmm", 0.1)]["peak_definition"]


def test_memory_of_every_step_of_the_first_epoch(smoke):
    sweep = smoke(max_steps=4, epochs=2, batch_size=48, track_memory=True)
    data, _ = prepare(sweep)
    runs = sweep.expand("sst2", "cpu")
    base, lean = (train(runs[row], data, quiet=True).memory for row in (0, 2))
    assert base["step"] == lean["step"] == [1, 2]  # of two epochs of two steps
    assert all(0 < less < more for less, more in zip(lean["bytes"], base["bytes"], strict=True))
    assert "each storage once" in base["definition"] and all(size > 1e6 for size in base["resident_bytes"])


def test_watching_changes_nothing(smoke):
    plain = smoke(max_steps=3)
    watched = smoke(max_steps=3, track_memory=True, probe_every=2)
    data, _ = prepare(plain)
    for row in range(3):
        first = train(plain.expand("sst2", "cpu")[row], data, quiet=True)
        second = train(watched.expand("sst2", "cpu")[row], data, quiet=True)
        assert first.curves == second.curves


def test_noise_of_one_layer(smoke):
    sweep = smoke(max_steps=5, epochs=2, probe_every=2, rate=(None, 0.2), method=("rmm",))
    data, source = prepare(sweep)
    base, rmm = (train(run, data, quiet=True).noise for run in sweep.expand("sst2", "cpu"))
    assert base["layer"] == rmm["layer"] == "roberta.encoder.layer.0.intermediate.dense"
    assert base["step"] == rmm["step"] == [1, 3, 5]
    assert all(0 < value < 1 for value in base["alignment"])
    # At the first step both stand at the same weights, and differ by dropout and by the rate that judges: 0.5 and 0.2.
    ratio = [noise["rmm_variance"][0] / noise["sgd_variance"][0] for noise in (base, rmm)]
    assert ratio[1] > 2 * ratio[0] > 0

    # Against the formulas, on the layer's own input and gradient at the first step of the baseline.
    run = sweep.expand("sst2", "cpu")[0]
    model, forward = build_model(run, source)
    kept: dict[str, torch.Tensor] = {}
    layer = model.get_submodule(base["layer"])
    layer.register_forward_hook(
        lambda module, inputs, out: kept.update(x=inputs[0].detach(), out=out) or out.retain_grad()
    )
    torch.manual_seed(run.seed)
    inputs, targets = data.train.batch(next(islice(endless_batches(data.train.lengths, 32, 0), 1)), CPU)
    loss_of(TASKS["sst2"], forward(inputs), targets).backward()
    x, gradient = kept["x"].flatten(0, 1), kept["out"].grad.flatten(0, 1)
    expected = {
        "sgd_variance": sgd_variance(x, gradient), "rmm_variance": rmm_variance(x, gradient, RMMConfig(rate=0.5)),
        "paper_rmm_variance": paper_rmm_variance(x, gradient, RMMConfig(rate=0.5).sketch_size(len(x))),
        "alignment": alignment(x, gradient), "gradient_norm2": layer.weight.grad.square().sum(),
    }  # fmt: skip
    for name, value in expected.items():
        assert base[name][0] == pytest.approx(float(value), rel=1e-3), name


def test_the_probed_layer_and_its_errors(smoke):
    sweep = smoke(probe_every=1)
    _, source = prepare(sweep)
    model = source.build(2, 0)
    assert probed_layer(model, None) == "roberta.encoder.layer.0.intermediate.dense"
    assert probed_layer(model, "classifier.dense") == "classifier.dense"
    with pytest.raises(
        BenchmarkError, match=r"'probe_layer' must name a linear layer \(got 'pooler'\)\. They are: roberta"
    ):
        probed_layer(model, "pooler")
    with pytest.raises(BenchmarkError, match=r"'probe_layer' must be given for this model\. It has: 0"):
        probed_layer(torch.nn.Sequential(torch.nn.Linear(2, 2)), None)


def test_a_loss_scale_is_divided_out_of_the_noise(smoke, monkeypatch):
    sweep = smoke(max_steps=1, probe_every=1, rate=(None,))
    data, _ = prepare(sweep)
    run = sweep.expand("sst2", "cpu")[0]
    plain = train(run, data, quiet=True).noise
    monkeypatch.setattr(Precision, "loss_scale", property(lambda self: 16.0))
    monkeypatch.setattr(Precision, "backward", lambda self, loss: (16.0 * loss).backward())
    scaled = train(run, data, quiet=True).noise
    for name in ("sgd_variance", "rmm_variance", "paper_rmm_variance", "alignment", "gradient_norm2"):
        assert scaled[name] == pytest.approx(plain[name], rel=1e-4), name


def test_bf16_keeps_less_and_stays_close(smoke, full_size):
    data, _ = prepare(smoke())
    base, low = (
        train(smoke(precision=precision, max_steps=2, batch_size=96).expand("sst2", "cpu")[0], data, quiet=True)
        for precision in ("fp32", "bf16")
    )
    assert low.results["saved_bytes"] < 0.8 * base.results["saved_bytes"]
    assert low.curves["train_loss"] != base.curves["train_loss"]
    assert low.curves["train_loss"] == pytest.approx(base.curves["train_loss"], rel=0.05)


def test_a_run_that_diverges_has_a_result(smoke):
    sweep = smoke(task=("stsb",), max_steps=4, lr=1e30)
    data, _ = prepare(sweep)
    result = train(sweep.expand("stsb", "cpu")[0], data, quiet=True)
    assert not math.isfinite(result.curves["train_loss"][-1]) and result.results["score"] == 0
    assert result.results["constant_predictions"]


def test_the_learning_rate_of_every_step(smoke, monkeypatch):
    seen = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: seen.append(dict(self.param_groups[0])) or step(self, *a)
    )
    sweep = smoke(task=("stsb",), max_steps=5, lr=1e-3)
    data, _ = prepare(sweep)
    train(replace(sweep.expand("stsb", "cpu")[0], warmup_share=0.4), data, quiet=True)
    assert [group["lr"] for group in seen] == pytest.approx([0.5e-3, 1e-3, 1e-3, 2e-3 / 3, 1e-3 / 3])
    assert (seen[0]["betas"], seen[0]["eps"], seen[0]["weight_decay"]) == ((0.9, 0.98), 1e-6, 0.1)


@pytest.mark.cuda
@pytest.mark.parametrize("row", [0, 1, 2])
def test_fp16_on_cuda(row: int, smoke):
    given = {"max_steps": 60, "epochs": 10, "batch_size": 8, "lr": 3e-3, "eval_every_steps": 30}
    sweep = smoke(precision="fp16", track_memory=True, probe_every=10, **given)
    data, _ = prepare(sweep)
    result = train(sweep.expand("sst2", "cuda")[row], data, quiet=True)
    assert result.results["score"] >= 90
    assert result.results["peak_definition"].startswith("largest torch.cuda.max_memory_allocated")
    assert result.results["peak_bytes"] >= max(result.memory["bytes"]) > 0 and len(result.memory["bytes"]) == 12
    assert len(result.noise["step"]) == 6


def test_steps():
    run = TextSweep(epochs=3, batch_size=10).expand("mrpc", "cpu")[0]
    assert steps_of(run, 95) == (30, 10) and steps_of(run, 101) == (33, 11)
    run = TextSweep(epochs=3, batch_size=10, max_steps=12).expand("mrpc", "cpu")[0]
    assert steps_of(run, 95) == (12, 10) and steps_of(run, 5) == (3, 1)


def test_evaluation_gives_predictions_back_in_the_order_of_the_examples(smoke):
    sweep = smoke(task=("stsb",))
    data, source = prepare(sweep)
    model = source.build(1, 0)
    split = data.evaluations[0]
    found = evaluate(model, TASKS["stsb"], [split], 5, Precision("fp32", CPU), CPU)
    inputs, targets = split.batch(list(range(len(split))), CPU)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert found.loss == pytest.approx(float((logits.squeeze(-1) - targets).square().mean()), rel=1e-4)
    pearson = torch.corrcoef(torch.stack([logits.squeeze(-1), targets]))[0, 1]
    assert found.metrics["pearson"] == pytest.approx(float(pearson), abs=1e-4)
    assert not model.training and not found.constant


def test_the_middle_block(smoke, full_size):
    _, source = prepare(smoke())
    assert probed_layer(source.build(2, 0), None) == "roberta.encoder.layer.1.intermediate.dense"
