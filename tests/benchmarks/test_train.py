"""One run: pairs start from the same weights, replay, and report the right epoch."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.methods import METHODS, Method, parse_sketch
from benchmarks.harness.train import build_model, train
from rmm_gnn import BlockRademacherSketch, CountSketch, RowSamplingSketch, SORSSketch


def test_every_method_starts_from_the_same_weights(make_run):
    models = {name: build_model(make_run(method=(name,)), 5, 3) for name in METHODS}
    reference = models["baseline"].state_dict()
    for name, model in models.items():
        state = model.state_dict()
        assert state.keys() == reference.keys(), name
        assert all(torch.equal(state[key], reference[key]) for key in reference), name
    other = build_model(make_run(seed=1), 5, 3).state_dict()
    assert not torch.equal(other["lin_in.weight"], reference["lin_in.weight"])


def test_the_same_run_replays(make_run, tiny):
    for method in METHODS:
        first, second = (train(make_run(method=(method,)), tiny, quiet=True) for _ in range(2))
        assert (first.loss, first.valid, first.test) == (second.loss, second.valid, second.test), method


def test_measuring_saved_bytes_leaves_the_run_alone(make_run, tiny, monkeypatch):
    expected = train(make_run(), tiny, quiet=True)
    monkeypatch.setattr("benchmarks.harness.train._saved_bytes", lambda *args: expected.saved)
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
    monkeypatch.setattr("benchmarks.harness.train._evaluate", lambda *args: next(scores))
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
    def halve(model, run):
        with torch.no_grad():
            model.lin_in.weight.mul_(0.5)
        return model

    monkeypatch.setitem(METHODS, "halved", Method("halved", prepare=halve))
    assert train(make_run(method=("halved",)), tiny, quiet=True).loss


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
