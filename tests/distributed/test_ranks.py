"""Distributed jobs: each check of the modules ``*_job`` on two and four ranks, and how failures in them show."""

from __future__ import annotations

from itertools import product
from types import ModuleType

import pytest
import torch

from tests.distributed import compile_job, cuda_job, ddp_job, fsdp_job, noise_job
from tests.distributed.conftest import Outcomes
from tests.distributed.ranks import Job, assert_passed, run

SIZES: dict[ModuleType, tuple[int, ...]] = {ddp_job: (2, 4), fsdp_job: (2, 4), noise_job: (1, 2, 4), compile_job: (2,)}
# Besides what concerns one wrapper, on two ranks; the others are run with `-m slow`.
BY_DEFAULT = {
    (ddp_job.every_step_layer_and_rank_draws_its_own_sketch, 4),
    (ddp_job.at_rate_one_the_gradient_is_that_of_the_whole_batch, 4),
    (fsdp_job.at_rate_one_the_gradient_is_that_of_the_whole_batch, 4),
    (noise_job.noise_falls_by_the_number_of_ranks, 1),
    (noise_job.noise_falls_by_the_number_of_ranks, 2),
    (noise_job.noise_falls_by_the_number_of_ranks, 4),
}


def _asked() -> list[object]:
    asked = []
    for module, sizes in SIZES.items():
        for size, check in product(sizes, module.CHECKS):
            job = module.__name__, size, "gloo", check.__name__
            name = f"{module.__name__.rpartition('.')[2]}-{check.__name__}-{size}"
            default = (size == 2 and module in (ddp_job, fsdp_job)) or (check, size) in BY_DEFAULT
            marks = () if default else pytest.mark.slow
            asked.append(pytest.param(job, id=name, marks=marks))
    return asked


@pytest.mark.parametrize("job", _asked())
def test_on_gloo(job: tuple[str, int, str, str], outcomes: Outcomes):
    assert_passed(outcomes[job[:3]], job[3], job[1])


@pytest.mark.cuda
@pytest.mark.parametrize("name", [check.__name__ for check in cuda_job.CHECKS])
def test_on_nccl(name: str, tmp_path, pytestconfig):
    job = Job(cuda_job.__name__, min(4, torch.cuda.device_count()), (name,), "nccl")
    assert_passed(run([job], tmp_path, pytestconfig.rootpath)[job], name, job.world_size)


def test_a_rank_that_fails_fails_the_test(tmp_path, pytestconfig):
    checks = "fails_on_one_rank", "is_not_reached"
    job = Job("tests.distributed.failing_job", 2, checks)
    ended = run([job], tmp_path, pytestconfig.rootpath)[job]
    with pytest.raises(AssertionError, match=r"rank 1:\nTraceback(.|\n)*the other rank is wrong"):
        assert_passed(ended, "fails_on_one_rank", 2)
    with pytest.raises(AssertionError, match="It was not run: the job ended in fails_on_one_rank"):
        assert_passed(ended, "is_not_reached", 2)
    with pytest.raises(AssertionError, match="1 of 2 ranks came to its end"):
        assert_passed({"it": ["passed"], "": [""]}, "it", 2)
