"""What torch.compile makes of a model under DistributedDataParallel."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
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
    whole_batch_gradients,
)
from tests.distributed.ranks import all_ranks


def wide() -> nn.Sequential:
    """Of several buckets of 1 MiB, where the compiler cuts the graph."""
    torch.manual_seed(1)
    inner = (layer for _ in range(3) for layer in (nn.Linear(512, 512), nn.ReLU()))
    return nn.Sequential(nn.Linear(WIDTH, 512), *inner, nn.Linear(512, 3)).double()


def compiled_gradients_are_those_of_the_whole_batch() -> None:
    for make in (perceptron, wide):
        torch.compiler.reset()
        expected = whole_batch_gradients(make())
        model = DistributedDataParallel(convert_to_rmm(make(), EXACT, lean=True), bucket_cap_mb=1)
        compiled = torch.compile(model, backend="aot_eager")
        for _ in range(2):
            model.zero_grad()
            loss_of(compiled(batch(dist.get_rank()))).backward()
            assert_same_on_all_ranks(model)
            assert_close(gradients(model), expected)


def compiled_layers_draw_their_own_sketches() -> None:
    torch.compiler.reset()
    layer = RMMTorchLinear(WIDTH, WIDTH, rate=0.25, bias=False)
    model = DistributedDataParallel(layer)
    compiled, found = torch.compile(model, backend="aot_eager"), []
    for _ in range(3):
        model.zero_grad()
        with model.no_sync():  # as each rank has it
            loss_of(compiled(torch.ones(ROWS, WIDTH).cumsum(0))).backward()
        found.append(layer.weight.grad.clone())
    drawn = [gradient for gradients in all_ranks(found) for gradient in gradients]
    assert all(not torch.equal(one, other) for number, one in enumerate(drawn) for other in drawn[:number])


def the_mode_goes_around_a_compiled_model() -> None:
    torch.compiler.reset()
    model = DistributedDataParallel(perceptron())
    compiled = torch.compile(model, backend="aot_eager")
    with compress_activations(EXACT):
        loss = loss_of(compiled(batch(dist.get_rank())))
    loss.backward()
    assert_same_on_all_ranks(model)
    assert_close(gradients(model), whole_batch_gradients(perceptron()))


def inductor_compiles_it() -> None:
    torch.compiler.reset()
    torch.manual_seed(1)
    inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 3)).double()
    model = DistributedDataParallel(convert_to_rmm(inner, RMMConfig(rate=0.5), lean=True))
    compiled = torch.compile(model)
    for step in range(2):
        loss_of(compiled(batch(dist.get_rank(), step))).backward()
        assert_same_on_all_ranks(model)


CHECKS = [
    compiled_gradients_are_those_of_the_whole_batch,
    compiled_layers_draw_their_own_sketches,
    the_mode_goes_around_a_compiled_model,
    inductor_compiles_it,
]
