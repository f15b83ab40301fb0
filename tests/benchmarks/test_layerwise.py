"""Evaluation layer by layer is that of the whole graph at once."""

from __future__ import annotations

import pytest
import torch

from benchmarks.harness.layerwise import evaluate, full_logits, rows_of
from benchmarks.harness.train import build_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("method", ["baseline", "rmm", "rmm-lean", "exact", "checkpoint"])
@pytest.mark.parametrize("chunk", [1, 7, 60, 1000])
def test_logits_are_those_of_the_full_batch(make_run, tiny, method: str, chunk: int):
    model = build_model(make_run(method=(method,), layers=3, theta=0.5, dropout=0.5), 5, 3)
    for norm in model.norms:  # as after training
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        expected = model.eval()(tiny.x, tiny.adjacency)
    torch.testing.assert_close(full_logits(model.train(), tiny, CPU, chunk), expected)
    assert not model.training


def test_scores_are_those_of_the_data_set(make_run, tiny):
    model, split = build_model(make_run(), 5, 3), tiny.split_for(0)
    logits = full_logits(model, tiny, CPU, 16)
    expected = [tiny.evaluate(logits, split.valid), tiny.evaluate(logits, split.test)]
    assert evaluate(model, tiny, CPU, 16, split.valid, split.test) == expected


@pytest.mark.parametrize("part", [slice(0, 4), slice(4, 11), slice(59, 60)])
def test_rows_of_a_matrix_with_and_without_columns_that_are_not_read(tiny, part: slice):
    whole = tiny.adjacency.to_dense()
    rows, read = rows_of(tiny.adjacency, part, compact=False)
    assert read is None and torch.equal(rows.to_dense(), whole[part])
    rows, read = rows_of(tiny.adjacency, part, compact=True)
    assert rows.shape[1] == len(read) < tiny.num_nodes and torch.equal(rows.to_dense(), whole[part][:, read])


@pytest.mark.cuda
def test_on_another_device(make_run, tiny):
    model = build_model(make_run(), 5, 3)
    expected = full_logits(model, tiny, CPU, 60)
    there = full_logits(model.cuda(), tiny, torch.device("cuda"), 7)
    torch.testing.assert_close(there, expected, rtol=1e-4, atol=1e-5)
