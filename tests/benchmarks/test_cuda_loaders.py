"""Sampled batches on a GPU: the graph stays on the host, a batch goes over with its matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.harness.train import train
from tests.benchmarks.loading import SMALL

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("loader", ["neighbor", "random-nodes"])
def test_a_run_on_the_gpu_is_that_on_the_cpu(make_run, tiny, loader: str):
    """Without dropout, which draws other masks there."""
    run = make_run(loader=loader, dropout=0.0, **SMALL[loader])
    expected, result = train(run, tiny, quiet=True), train(replace(run, device="cuda"), tiny, quiet=True)
    torch.testing.assert_close(torch.tensor(result.loss), torch.tensor(expected.loss), rtol=1e-3, atol=1e-4)
    assert result.sampling["rows_per_step"] == expected.sampling["rows_per_step"]
    assert result.saved.total > 0 and result.peak_bytes > 0


@pytest.mark.parametrize("loader", ["neighbor", "random-nodes"])
@pytest.mark.parametrize("method", ["rmm", "rmm-lean", "exact", "checkpoint", "offload"])
def test_methods_train_on_the_gpu(make_run, tiny, loader: str, method: str):
    run = make_run(loader=loader, method=(method,), rate=(0.5,), dropout=0.1, epochs=25, lr=0.03, **SMALL[loader])
    result = train(replace(run, device="cuda"), tiny, quiet=True)
    assert result.loss[-1] < 0.8 * result.loss[0]
