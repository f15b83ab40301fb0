"""Ranks of a distributed job that start alike: what each has of its own, and that their gradients are the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

# One job for all checks: what takes long is to start it.
JOB = """
import sys
import traceback
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from rmm_gnn import RMMConfig
from rmm_gnn.nn import RMMTorchLinear
from tests.nn.recording import SeedRecorder


def of_both_ranks(value):
    gathered = [None, None]
    dist.all_gather_object(gathered, value)
    return gathered


def sketches():
    model = DistributedDataParallel(torch.nn.Sequential(*(RMMTorchLinear(8, 8, rate=0.25) for _ in range(2))))
    x = torch.randn(32, 8)
    seeds = []
    for _ in range(3):
        with SeedRecorder() as recorder:
            model(x).square().sum().backward()
        assert sorted(recorder.forward) == sorted(recorder.backward)
        seeds += recorder.forward
    (first, first_grads, first_x), (second, second_grads, second_x) = of_both_ranks(
        (seeds, [parameter.grad for parameter in model.parameters()], x)
    )
    assert torch.equal(first_x, second_x), "the ranks were meant to start alike"
    assert len(set(first + second)) == 12, (first, second)
    assert all(torch.equal(a, b) for a, b in zip(first_grads, second_grads))


def norms():
    layer = RMMTorchLinear(8, 8, config=RMMConfig(rate=0.25, sketch="importance_sampling"))
    model = DistributedDataParallel(layer)
    x = torch.randn(32, 8) * (1 + rank * torch.arange(32).unsqueeze(1))
    for _ in range(3):
        model(x).square().sum().backward()
    (first, first_grad), (second, second_grad) = of_both_ranks(
        (vars(layer)["_rmm_row_norms"].float(), layer.weight.grad)
    )
    assert not torch.allclose(first, second) and torch.equal(first_grad, second_grad)


rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
for check in (sketches, norms):
    torch.manual_seed(0)
    try:
        check()
    except AssertionError:
        traceback.print_exc()
    else:
        print(check.__name__, "differ")
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> list[str]:
    """What each rank printed."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    command = [sys.executable, "-c", JOB]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": pytestconfig.rootpath}
    ranks = [subprocess.Popen([*command, str(rank), str(store)], **settings) for rank in range(2)]
    try:
        return [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()


def test_they_draw_different_sketches(outputs: list[str]):
    assert all("sketches differ" in output for output in outputs), outputs


def test_they_hold_their_own_norms(outputs: list[str]):
    assert all("norms differ" in output for output in outputs), outputs
