"""One run: pairs start from the same weights, replay, and report the right epoch."""

from __future__ import annotations

import contextlib
import itertools
import time

import pytest
import torch

from benchmarks.harness.datasets import load
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.methods import METHODS, Method, parse_sketch
from benchmarks.harness.task import Task
from benchmarks.harness.train import build_model, train
from rmm_gnn import BlockRademacherSketch, CountSketch, RowSamplingSketch, SORSSketch

ENOUGH = ("90%",)  # of a graph so small that what does not shrink is most of it


def test_every_method_starts_from_the_same_weights(make_run, tiny):
    task = Task.of(tiny, tiny.split_for(0))
    models = {name: build_model(make_run(method=(name,), budget=ENOUGH), 5, 3, task) for name in METHODS}
    reference = models["baseline"].state_dict()
    for name, model in models.items():
        state = model.state_dict()
        assert state.keys() == reference.keys(), name
        assert all(torch.equal(state[key], reference[key]) for key in reference), name
    other = build_model(make_run(seed=1), 5, 3).state_dict()
    assert not torch.equal(other["lin_in.weight"], reference["lin_in.weight"])


def test_the_same_run_replays(make_run, tiny):
    for method in METHODS:
        run = make_run(method=(method,), budget=ENOUGH)
        first, second = (train(run, tiny, quiet=True) for _ in range(2))
        assert (first.loss, first.valid, first.test) == (second.loss, second.valid, second.test), method


def test_measuring_saved_bytes_leaves_the_run_alone(make_run, tiny, monkeypatch):
    expected = train(make_run(), tiny, quiet=True)
    monkeypatch.setattr("benchmarks.harness.training.kept_bytes", lambda *args: expected.saved)
    assert train(make_run(), tiny, quiet=True).loss == expected.loss


def test_training_learns_and_clips(make_run, tiny):
    result = train(make_run(epochs=60, lr=0.01, dropout=0.0), tiny, quiet=True)
    assert result.loss[-1] < 0.5 * result.loss[0]
    assert result.epoch_s > 0 and result.wall_s > result.epoch_s
    free = train(make_run(epochs=3, clip=0.0), tiny, quiet=True)
    tight = train(make_run(epochs=3, clip=1e-12), tiny, quiet=True)
    assert free.loss[0] == tight.loss[0] and free.loss[2] != tight.loss[2]


def test_the_reported_epoch_is_the_best_on_validation(make_run, tiny, monkeypatch):
    scores = iter([(0.2, 0.9), (0.7, 0.3), (0.7, 0.8), (0.1, 1.0)])
    monkeypatch.setattr("benchmarks.harness.training._evaluate", lambda *args: next(scores))
    result = train(make_run(), tiny, quiet=True)
    assert (result.best_epoch, result.valid_accuracy, result.test_accuracy) == (2, 0.7, 0.3)  # the first of equals
    assert result.epochs == [1, 2, 3, 4]


def test_evaluation_can_be_rarer(make_run, tiny):
    result = train(make_run(epochs=5, eval_every=2), tiny, quiet=True)
    assert result.epochs == [2, 4, 5] and len(result.valid) == len(result.test) == 3 and len(result.loss) == 5


def test_rmm_keeps_less_in_the_convolutions(make_run, tiny):
    runs = (make_run(method=(name,), dropout=0.0) for name in ("baseline", "rmm"))
    baseline, rmm = (train(run, tiny, quiet=True) for run in runs)
    assert rmm.saved.convolutions < baseline.saved.convolutions
    assert rmm.saved.total < baseline.saved.total
    assert rmm.loss[0] == pytest.approx(baseline.loss[0], rel=1e-5)  # the forward pass is exact


def test_a_method_is_one_entry(make_run, tiny, monkeypatch):
    def halve(model, run, task):
        with torch.no_grad():
            model.lin_in.weight.mul_(0.5)
        return model

    monkeypatch.setitem(METHODS, "halved", Method("halved", prepare=halve))
    assert train(make_run(method=("halved",)), tiny, quiet=True).loss


def test_a_context_is_in_force_in_the_forward_pass_of_training_alone(make_run, tiny, monkeypatch):
    inside = []
    seen = []

    @contextlib.contextmanager
    def context(model, run, task):
        inside.append(run.method)
        yield
        inside.pop()

    def prepare(model, run, task):
        model.register_forward_hook(lambda module, args, output: seen.append((module.training, len(inside))))
        model.lin_in.weight.register_hook(lambda grad: seen.append(("backward", len(inside))))
        return model

    monkeypatch.setitem(METHODS, "watched", Method("watched", prepare=prepare, context=context))
    train(make_run(method=("watched",), epochs=1), tiny, quiet=True)
    # The copy that is measured has no hook on its weight; then one step, and one evaluation.
    assert seen == [(True, 1), (True, 1), ("backward", 0), (False, 0)]


@pytest.mark.parametrize("method", ["checkpoint", "offload"])
def test_what_is_not_an_estimate_trains_as_the_baseline(make_run, tiny, method: str):
    expected, result = (train(make_run(method=(name,), dropout=0.5), tiny, quiet=True) for name in ("baseline", method))
    assert (result.loss, result.valid, result.test) == (expected.loss, expected.valid, expected.test)
    assert result.saved.convolutions is None  # their hooks hide which layer keeps what
    assert (result.saved.total < expected.saved.total) == (method == "checkpoint")  # on CPU offload moves nothing


def test_only_a_run_on_another_device_has_a_host(make_run, tiny):
    assert train(make_run(epochs=1), tiny, quiet=True).saved.host is None


def test_lean_and_exact_keep_less_than_products_only(make_run, tiny):
    names = ("baseline", "rmm", "rmm-lean", "exact")
    kept = [train(make_run(method=(name,), epochs=1), tiny, quiet=True).saved.total for name in names]
    assert kept[0] > kept[1] > max(kept[2:])


@pytest.mark.parametrize("rate", [0.0, 1.5])
def test_a_share_of_features_is_a_share(make_run, rate: float):
    with pytest.raises(ValueError, match=r"'rate' must be in \(0, 1\] \(got .*share of features"):
        METHODS["exact"].check(make_run(method=("exact",), rate=(rate,)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count_sketch", CountSketch()),
        ("sors:transform=dct", SORSSketch(transform="dct")),
        ("block_rademacher:block_rows=64", BlockRademacherSketch(block_rows=64)),
        ("row_sampling:replacement=True", RowSamplingSketch(replacement=True)),
    ],
)
def test_sketches_are_named_with_their_settings(text, expected):
    assert parse_sketch(text) == expected


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("gauss", "'sketch' must be a known name"),
        ("sors:kind=dct", "one of: transform"),
        ("sors:transform=", "one of: transform"),
        ("gaussian:rows=3", "it has no settings"),
        ("sors:transform=dst", "'transform' must be a known name"),
    ],
)
def test_wrong_sketches_are_refused(text, match):
    with pytest.raises(ValueError, match=match):
        parse_sketch(text)


@pytest.fixture(scope="module")
def digits():
    return load("digits", "unused")


@pytest.mark.parametrize("method", ["rmm-plan", "rmm-uniform"])
def test_a_budget_is_kept_and_used(make_run, digits, method: str):
    given = {"layers": 3, "hidden": 16, "epochs": 2, "norm_codec": ("int1",), "x0_codec": ("int2",), "codec": ("int2",)}
    stock = train(make_run(**given), digits, quiet=True)
    kept = train(make_run(**given, method=(method,), budget=("5%",)), digits, quiet=True)
    # The budget is of what the ledger counts; beside it live here the seeds and the loss's own tensors.
    assert 0.04 < kept.saved.total / stock.saved.total < 0.06
    with pytest.raises(BenchmarkError, match="budget"):
        train(make_run(**given, method=(method,), budget=("0.1%",)), digits, quiet=True)


def test_rates_follow_the_noise(make_run, digits):
    run = make_run(method=("rmm-lean",), adaptive=("rate",), noise_target=(5.0,), layers=2, hidden=16, epochs=31)
    result = train(run, digits, quiet=True)
    steps = sorted({step for step, *_ in result.noise})
    assert steps == [0, 10, 20, 30] and len(result.noise) == 4 * 3  # but lin_in, whose input is held
    assert all(measured == pytest.approx(5.0, rel=0.4) for step, _, measured, _ in result.noise if step == 30)
    assert result.saved_mean_bytes > 0
    assert run.label == "rmm-lean count_sketch 0.1 fp32, norm int2, x0 fp32, adaptive rate for noise 5"


def test_the_learning_rate_follows_the_noise(make_run, tiny):
    plain, followed = (
        train(make_run(method=("rmm",), adaptive=(adaptive,), epochs=5), tiny, quiet=True) for adaptive in ("off", "lr")
    )
    assert followed.loss[1] == plain.loss[1] and followed.loss[2:] != plain.loss[2:]
    assert followed.noise == [] and followed.saved_mean_bytes is None


@pytest.mark.parametrize("adaptive", ["rate", "lr"])
@pytest.mark.parametrize("sketch", ["importance_sampling", "norm_sampling", "sors:transform=dct"])
def test_families_whose_noise_needs_more_than_sketches_are_followed_too(make_run, tiny, sketch, adaptive):
    given = {"noise_target": (5.0,)} if adaptive == "rate" else {}
    run = make_run(method=("rmm-lean",), sketch=(sketch,), adaptive=(adaptive,), epochs=12, **given)
    result = train(run, tiny, quiet=True)
    assert len(result.loss) == 12 and len(result.noise) == (2 * 3 if adaptive == "rate" else 0)


def test_measuring_a_run_that_moves_its_rates_leaves_it_alone_and_is_done_when_they_move(make_run, tiny, monkeypatch):
    run = make_run(method=("rmm-lean",), adaptive=("rate",), noise_target=(1e9,), epochs=61)
    expected, calls = train(run, tiny, quiet=True), []
    steps = sorted({step for step, *_ in expected.noise})
    rates = [{layer: rate for step, layer, _, rate in expected.noise if step <= at} for at in steps]
    moves = 1 + sum(one != other for one, other in itertools.pairwise(rates))

    def measured(*args):
        calls.append(args)
        time.sleep(0.2)
        return expected.saved

    monkeypatch.setattr("benchmarks.harness.training.kept_bytes", measured)
    start = time.perf_counter()
    found = train(run, tiny, quiet=True)
    total = time.perf_counter() - start
    assert found.loss == expected.loss and found.noise == expected.noise
    assert len(calls) == 1 + moves < 1 + len(steps)  # one before the run
    assert found.wall_s < total - 0.2 * moves + 0.1
