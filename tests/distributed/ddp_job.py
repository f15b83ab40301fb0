"""What must hold of layers that keep sketches, and of lean modules, under DistributedDataParallel."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import rmm_gnn.functional as lean
from rmm_gnn import (
    GradientProbe,
    NoiseController,
    NoiseLR,
    RMMConfig,
    compress_activations,
    convert_to_rmm,
    memory_report,
    plan,
)
from rmm_gnn.nn import LeanBatchNorm1d, LeanDropout, LeanReLU, RMMGCN2Conv, RMMLinear, RMMTorchLinear
from tests.distributed.ranks import all_ranks
from tests.nn.recording import SeedRecorder

ROWS, WIDTH = 32, 8
EXACT = RMMConfig(rate=1.0, norm_codec="fp32", act_codec="fp32")


class GCN2(nn.Module):
    """A convolution between linear layers of both kinds, with stock activations and normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), RMMLinear(WIDTH, WIDTH, rate=0.25)
        self.conv = RMMGCN2Conv(WIDTH, 0.1, 0.5, 1, shared_weights=False, rate=0.25)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x_0 = F.relu(self.first(x))
        return self.last(F.relu(self.norm(self.conv(x_0, x_0, edge_index))))


def ring(num_nodes: int) -> Tensor:
    nodes = torch.arange(num_nodes)
    return torch.stack([nodes, nodes.roll(1)])


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
    return nn.Sequential(*layers, nn.Linear(WIDTH, 3)).to(dtype)


def batch(rank: int, step: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(100 * step + rank), dtype=dtype)


def loss_of(out: Tensor) -> Tensor:
    return out.square().mean() + out.tanh().mean()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name.removeprefix("module."): parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def assert_same_on_all_ranks(model: nn.Module) -> None:
    first, *others = all_ranks(gradients(model))
    assert first
    for other in others:
        assert first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


def whole_batch_gradients(model: nn.Module, steps: int = 1) -> dict[str, Tensor]:
    """Of one process that has the shards of all ranks, which are of one size; ``model`` is plain."""
    for step in range(steps):
        loss_of(model(torch.cat([batch(rank, step) for rank in range(dist.get_world_size())]))).backward()
    return gradients(model)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=tolerance, atol=tolerance)


def every_step_layer_and_rank_draws_its_own_sketch() -> None:
    model = DistributedDataParallel(GCN2_converted())
    x, seeds = torch.randn(ROWS, WIDTH), []
    for _ in range(3):
        with SeedRecorder() as recorder:
            loss_of(model(x, ring(ROWS))).backward()
        assert sorted(recorder.forward) == sorted(recorder.backward)
        seeds += recorder.forward
        assert_same_on_all_ranks(model)
    gathered = all_ranks((seeds, x))
    assert all(torch.equal(x, other) for _, other in gathered), "the ranks were meant to start alike"
    drawn = [seed for seeds, _ in gathered for seed in seeds]
    assert len(drawn) == 9 * dist.get_world_size() == len(set(drawn)), drawn


def GCN2_converted() -> GCN2:
    torch.manual_seed(0)
    return convert_to_rmm(GCN2(), RMMConfig(rate=0.25), lean=True)


def dropout_masks_differ() -> None:
    model = DistributedDataParallel(nn.Sequential(nn.Linear(WIDTH, 64), LeanDropout(0.5)))
    masks = all_ranks(model(torch.ones(ROWS, WIDTH)) != 0)
    assert not any(torch.equal(masks[0], mask) for mask in masks[1:])


def norms_of_rows_are_those_of_the_rank() -> None:
    layer = RMMTorchLinear(WIDTH, WIDTH, config=RMMConfig(rate=0.25, sketch="importance_sampling"))
    model = DistributedDataParallel(layer)
    x = torch.randn(ROWS, WIDTH) * (1 + dist.get_rank() * torch.arange(ROWS).unsqueeze(1))
    for _ in range(3):
        model(x).square().sum().backward()
        assert_same_on_all_ranks(model)
    norms = all_ranks(vars(layer)["_rmm_row_norms"].float())
    assert not any(torch.allclose(norms[0], other) for other in norms[1:])


def at_rate_one_the_gradient_is_that_of_the_whole_batch() -> None:
    for others in (False, True):
        model = DistributedDataParallel(convert_to_rmm(perceptron(), EXACT, lean=others))
        loss_of(model(batch(dist.get_rank()))).backward()
        assert_same_on_all_ranks(model)
        assert_close(gradients(model), whole_batch_gradients(perceptron()))


def options_of_the_wrapper_change_nothing() -> None:
    expected = whole_batch_gradients(perceptron())
    for options in (
        {"static_graph": True},
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"forward_sync_buffers": False, "bucket_cap_mb": 1e-4},
        {"static_graph": True, "gradient_as_bucket_view": True},
    ):
        model = DistributedDataParallel(convert_to_rmm(perceptron(), EXACT, lean=True), **options)
        for _ in range(3):  # a static graph is recorded in the first step and replayed from the second one on
            model.zero_grad()
            loss_of(model(batch(dist.get_rank()))).backward()
            assert_close(gradients(model), expected)


class TwoWays(nn.Module):
    """Uses one of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.ways = nn.ModuleList(RMMTorchLinear(WIDTH, 3, rate=0.5) for _ in range(2))

    def forward(self, x: Tensor, way: int) -> Tensor:
        return self.ways[way](x)


def unused_layers_are_found() -> None:
    model = DistributedDataParallel(TwoWays(), find_unused_parameters=True)
    for step in range(4):
        model.zero_grad()
        # At step 2 and 3 the ranks take different ways.
        way = (step + dist.get_rank() * (step // 2)) % 2
        loss_of(model(torch.randn(ROWS, WIDTH), way)).backward()
        assert_same_on_all_ranks(model)
        assert len(gradients(model)) == (2 if step < 2 else 4)


def accumulation_sums_over_steps() -> None:
    expected = whole_batch_gradients(perceptron(), steps=3)
    model = DistributedDataParallel(convert_to_rmm(perceptron(), EXACT, lean=True))
    with model.no_sync():
        for step in range(2):
            loss_of(model(batch(dist.get_rank(), step))).backward()
    loss_of(model(batch(dist.get_rank(), 2))).backward()
    assert_close(gradients(model), expected)
    assert_same_on_all_ranks(model)

    model, seeds = DistributedDataParallel(RMMTorchLinear(WIDTH, 3, rate=0.25)), []
    with SeedRecorder() as recorder, model.no_sync():
        for _ in range(2):
            loss_of(model(torch.ones(ROWS, WIDTH))).backward()
    seeds = [seed for seeds in all_ranks(recorder.forward) for seed in seeds]
    assert len(set(seeds)) == 2 * dist.get_world_size()


def batch_norm_has_the_statistics_of_the_rank_as_torchs_has() -> None:
    found = []
    for norm in (nn.BatchNorm1d(WIDTH), LeanBatchNorm1d(WIDTH, config=EXACT)):
        torch.manual_seed(1)
        inner = nn.Sequential(nn.Linear(WIDTH, WIDTH), norm, nn.Linear(WIDTH, 3)).double()
        for broadcast in (True, False):
            model = DistributedDataParallel(copy.deepcopy(inner), forward_sync_buffers=broadcast)
            for step in range(3):
                loss_of(model(batch(dist.get_rank(), step))).backward()
            assert_same_on_all_ranks(model)
            found.append((gradients(model), {name: buffer.clone() for name, buffer in model.named_buffers()}))
    for (torchs, their_buffers), (ours, our_buffers) in zip(found[:2], found[2:], strict=True):
        assert_close(ours, torchs)
        assert_close(our_buffers, their_buffers)


def synchronised_batch_norm_is_never_replaced() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SyncBatchNorm(WIDTH))
    convert_to_rmm(model, RMMConfig(rate=0.5), lean=True)
    assert type(model[1]) is nn.SyncBatchNorm
    unsynchronised = convert_to_rmm(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)), EXACT, lean=True)
    assert type(nn.SyncBatchNorm.convert_sync_batchnorm(unsynchronised)[1]) is nn.SyncBatchNorm
    # torch has none on CPUs; the mode must not put another norm in its place.
    with compress_activations(EXACT), pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on"):
        model(torch.randn(ROWS, WIDTH))


def the_mode_acts_within_and_around_the_wrapper() -> None:
    expected, x = whole_batch_gradients(perceptron()), batch(dist.get_rank())
    for config, held in ((EXACT, None), (RMMConfig(rate=0.25, norm_codec="fp32", act_codec="fp32"), (x,))):
        model = DistributedDataParallel(perceptron())
        with compress_activations(config, held=held):
            loss = loss_of(model(x))
        loss.backward()
        assert_same_on_all_ranks(model)
        if held is None:
            assert_close(gradients(model), expected)
        else:
            first = "0.weight"  # of the only layer that reads what is held; gradients of inputs and biases are exact
            assert_close({first: gradients(model)[first]}, {first: expected[first]})
            assert not torch.allclose(gradients(model)["3.weight"], expected["3.weight"])

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = perceptron()

        def forward(self, x: Tensor) -> Tensor:
            with compress_activations(RMMConfig(rate=0.25)):
                return self.model(x)

    model, seeds = DistributedDataParallel(Inside()), []
    for _ in range(2):
        with compress_seeds() as drawn:
            loss_of(model(x)).backward()
        assert_same_on_all_ranks(model)
        seeds += drawn
    seeds = [seed for seeds in all_ranks(seeds) for seed in seeds]
    assert len(seeds) == len(set(seeds)) == 2 * 3 * dist.get_world_size()


class compress_seeds:
    """Notes the seeds of sketches that products may share."""

    def __enter__(self) -> list[int]:
        from torch.utils._python_dispatch import TorchDispatchMode

        drawn: list[int] = []

        class Recorder(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func is torch.ops.rmm_gnn.compress.default:
                    drawn.append(int(args[1]))
                return func(*args, **(kwargs or {}))

        self._recorder = Recorder()
        self._recorder.__enter__()
        return drawn

    def __exit__(self, *error: object) -> None:
        self._recorder.__exit__(*error)


def conversion_of_a_wrapped_model() -> None:
    plain = DistributedDataParallel(perceptron())
    names, parameters = list(plain.state_dict()), [id(parameter) for parameter in plain.parameters()]
    model = convert_to_rmm(plain, {r"module\.[03]": EXACT, ".*": EXACT}, lean=True)
    assert list(model.state_dict()) == names and [id(parameter) for parameter in model.parameters()] == parameters
    assert type(model.module[0]) is RMMTorchLinear and type(model.module[4]) is LeanReLU
    loss_of(model(batch(dist.get_rank()))).backward()
    assert_same_on_all_ranks(model)
    assert_close(gradients(model), whole_batch_gradients(perceptron()))


def copies_draw_their_own() -> None:
    model = DistributedDataParallel(RMMTorchLinear(WIDTH, 3, rate=0.25))
    copied = copy.deepcopy(model)
    with SeedRecorder() as recorder:
        for one in (model, copied):
            loss_of(one(torch.ones(ROWS, WIDTH))).backward()
            assert_same_on_all_ranks(one)
    seeds = [seed for seeds in all_ranks(recorder.forward) for seed in seeds]
    assert len(set(seeds)) == 2 * dist.get_world_size()
    assert copied.module.config == model.module.config and copied.module.weight is not model.module.weight


class Checkpointed(nn.Module):
    """A block that is run again in backward."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), nn.ReLU(), nn.Linear(WIDTH, 3))
        self.block = convert_to_rmm(block, RMMConfig(rate=0.25), lean=True)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.block, x)


def recomputed_blocks_redraw_their_sketches() -> None:
    x, found = torch.ones(ROWS, WIDTH, requires_grad=True), []
    runs = (
        lambda block, x: block(x),
        partial(checkpoint, use_reentrant=False),
        partial(checkpoint, use_reentrant=True),
    )
    for run in runs:
        model = DistributedDataParallel(Checkpointed(run), static_graph=True)
        torch.manual_seed(2)
        for _ in range(2):
            model.zero_grad()
            loss_of(model(x)).backward()
            assert_same_on_all_ranks(model)
        found.append(gradients(model))
    assert_close(found[1], found[0], 1e-6)
    assert_close(found[2], found[0], 1e-6)


def rates_that_diverge_leave_gradients_alike() -> None:
    torch.manual_seed(1)
    model = DistributedDataParallel(RMMTorchLinear(WIDTH, 3, rate=0.3))
    controller = NoiseController(model, target=0.5, every=1)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(6):
        model.zero_grad()
        # A rank with a common mean has a larger gradient and less of the data's noise.
        x = torch.randn(64, WIDTH, generator=generator) + 3 * dist.get_rank()
        model(x).square().mean().backward()
        assert_same_on_all_ranks(model)
        controller.step()
    rates = all_ranks(model.module.config.rate)
    assert len(set(rates)) > 1, "the ranks were meant to diverge"


def a_rate_that_follows_the_noise_is_one_for_all_ranks() -> None:
    model = DistributedDataParallel(RMMTorchLinear(WIDTH, 3, rate=0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = NoiseLR(optimizer, model, every=2)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(4):
        optimizer.zero_grad()
        x = torch.randn(64, WIDTH, generator=generator) * (1 + dist.get_rank()) + dist.get_rank()
        model(x).square().mean().backward()
        optimizer.step()
        scheduler.step()
        first, *others = all_ranks((scheduler.get_last_lr(), model.module.weight.detach()))
        assert all(rate == first[0] and torch.equal(weight, first[1]) for rate, weight in others)
    assert first[0][0] < 0.1

    # On identical shards the noise of the mean gradient is that of one rank over their number.
    model = DistributedDataParallel(RMMTorchLinear(WIDTH, 3, rate=0.1))
    probe = GradientProbe(model, every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scheduler = NoiseLR(optimizer, model, every=1)
    model(torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)) + 1).square().mean().backward()
    optimizer.step()
    scheduler.step()
    (record,), ranks = probe.records, dist.get_world_size()
    best = record.gradient_square + record.sgd_variance / ranks
    assert scheduler.get_last_lr() == [pytest.approx(best / (best + record.rmm_variance / ranks))]


def a_rank_that_trains_by_itself_follows_its_own_noise() -> None:
    rank = dist.get_rank()
    model = RMMTorchLinear(WIDTH, 3, rate=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    group = dist.new_group([rank], use_local_synchronization=True)
    scheduler = NoiseLR(optimizer, model, every=1, process_group=group)
    for _ in range(1 + rank):  # not as often as the others
        model(torch.randn(64, WIDTH)).square().mean().backward()
        optimizer.step()
        scheduler.step()
    assert len(set(all_ranks(scheduler.get_last_lr()[0]))) == dist.get_world_size()


def reports_are_made_by_all_ranks() -> None:
    inner = convert_to_rmm(perceptron(), RMMConfig(rate=0.25), lean=True)
    model, x = DistributedDataParallel(copy.deepcopy(inner)), batch(dist.get_rank())
    loss_of(model(x)).backward()
    before = gradients(model)
    report = memory_report(model, x, loss_fn=loss_of)
    assert report.saved_bytes == memory_report(inner, x, loss_fn=loss_of).saved_bytes
    assert_close(gradients(model), before, 0.0)
    assert_same_on_all_ranks(model)


def tensors_spread_over_ranks_are_refused() -> None:
    mesh, local = init_device_mesh("cpu", (dist.get_world_size(),)), torch.randn(ROWS, WIDTH)
    for placement in (Replicate(), Shard(0)):
        x = distribute_tensor(torch.randn(ROWS, WIDTH), mesh, [placement])
        weight = distribute_tensor(torch.randn(WIDTH, WIDTH), mesh, [placement]).requires_grad_()
        calls = {
            "x": [
                lambda x=x: lean.relu(x),
                lambda x=x: lean.dropout(x),
                lambda x=x: lean.gelu(x),
                lambda x=x: lean.batch_norm(x, None, None, training=True),
                lambda x=x: lean.layer_norm(x, [WIDTH]),
                lambda x=x: RMMTorchLinear(WIDTH, WIDTH, rate=0.5)(x),
                lambda x=x: RMMLinear(WIDTH, WIDTH, rate=0.5)(x),
            ],
            "weight": [
                lambda weight=weight: lean.rmm_linear(local, weight, config=EXACT),
                lambda weight=weight: lean.rmm_linear(local, weight=weight, config=EXACT),
                lambda weight=weight: lean.shared_input_linear(local, weight, codec="int8"),
            ],
        }
        for name, attempts in calls.items():
            for call in attempts:
                with pytest.raises(TypeError, match=f"'{name}' must not be spread over ranks \\(got DTensor"):
                    call()
        # In eval() a layer is torch's own.
        parallel = parallelize_module(RMMTorchLinear(WIDTH, WIDTH, rate=0.5), mesh, ColwiseParallel())
        with pytest.raises(TypeError, match="must not be spread over ranks"):
            parallel(local)
        assert parallel.eval()(local).shape == (ROWS, WIDTH // dist.get_world_size())


def plans_are_of_models_that_are_not_distributed() -> None:
    x = batch(dist.get_rank())
    with pytest.raises(ValueError, match=r"'model' must not be distributed yet \(got DistributedDataParallel"):
        plan(DistributedDataParallel(perceptron()), x, loss_of, rate=0.5)
    made = [plan(perceptron(), x, loss_of, rate=0.5) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(made)
    assert len(set(all_ranks(str(made[0])))) == 1
    model = DistributedDataParallel(made[0].apply(perceptron()))
    with made[0].context(x):
        loss_of(model(x)).backward()
    assert_same_on_all_ranks(model)


CHECKS = [
    every_step_layer_and_rank_draws_its_own_sketch,
    dropout_masks_differ,
    norms_of_rows_are_those_of_the_rank,
    at_rate_one_the_gradient_is_that_of_the_whole_batch,
    options_of_the_wrapper_change_nothing,
    unused_layers_are_found,
    accumulation_sums_over_steps,
    batch_norm_has_the_statistics_of_the_rank_as_torchs_has,
    synchronised_batch_norm_is_never_replaced,
    the_mode_acts_within_and_around_the_wrapper,
    conversion_of_a_wrapped_model,
    copies_draw_their_own,
    recomputed_blocks_redraw_their_sketches,
    rates_that_diverge_leave_gradients_alike,
    a_rate_that_follows_the_noise_is_one_for_all_ranks,
    a_rank_that_trains_by_itself_follows_its_own_noise,
    reports_are_made_by_all_ranks,
    tensors_spread_over_ranks_are_refused,
    plans_are_of_models_that_are_not_distributed,
]
