"""What needs GPUs: NCCL, and batch normalisation that is synchronised over ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm
from rmm_gnn.nn import RMMTorchLinear
from tests.distributed.ddp_job import (
    EXACT,
    ROWS,
    WIDTH,
    assert_close,
    assert_same_on_all_ranks,
    batch,
    gradients,
    loss_of,
    perceptron,
)
from tests.distributed.ranks import all_ranks
from tests.nn.recording import SeedRecorder


def _shard() -> Tensor:
    return batch(dist.get_rank()).cuda()


def _expected(model: nn.Module) -> dict[str, Tensor]:
    loss_of(model(torch.cat([batch(rank).cuda() for rank in range(dist.get_world_size())]))).backward()
    return gradients(model)


def gradients_are_those_of_the_whole_batch() -> None:
    expected = _expected(perceptron().cuda())
    model = DistributedDataParallel(convert_to_rmm(perceptron(), EXACT, lean=True).cuda())
    loss_of(model(_shard())).backward()
    assert_close(gradients(model), expected)
    sharded = fully_shard(convert_to_rmm(perceptron(), EXACT, lean=True).cuda())
    loss_of(sharded(_shard())).backward()
    assert_close({name: value.full_tensor() for name, value in gradients(sharded).items()}, expected)


def every_rank_draws_its_own_sketch() -> None:
    layers = (RMMTorchLinear(WIDTH, WIDTH, rate=0.25) for _ in range(2))
    model = DistributedDataParallel(nn.Sequential(*layers).cuda())
    with SeedRecorder() as recorder:
        loss_of(model(torch.randn(ROWS, WIDTH, device="cuda"))).backward()
    assert_same_on_all_ranks(model)
    drawn = [seed for seeds in all_ranks(recorder.forward) for seed in seeds]
    assert len(set(drawn)) == 2 * dist.get_world_size()


def synchronised_batch_norm_stays_synchronised() -> None:
    found = []
    for conversion in (None, RMMConfig(rate=1.0, norm_codec="fp32")):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SyncBatchNorm(WIDTH), nn.Linear(WIDTH, 3)).double().cuda()
        if conversion is not None:
            convert_to_rmm(model, conversion, lean=True)
        model = DistributedDataParallel(model)
        with compress_activations(conversion) if conversion is not None else torch.enable_grad():
            loss = loss_of(model(_shard()))
        loss.backward()
        found.append((gradients(model), {name: buffer.double() for name, buffer in model.named_buffers()}))
    assert_close(found[1][0], found[0][0])
    assert_close(found[1][1], found[0][1])


CHECKS = [
    gradients_are_those_of_the_whole_batch,
    every_rank_draws_its_own_sketch,
    synchronised_batch_norm_stays_synchronised,
]
