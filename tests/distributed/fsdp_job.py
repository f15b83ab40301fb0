"""What must hold of layers that keep sketches, and of lean modules, in a model that fully_shard distributes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from rmm_gnn import (
    GradientProbe,
    NoiseController,
    NoiseLR,
    RMMConfig,
    compress_activations,
    convert_to_rmm,
    memory_report,
    plan,
    revert_rmm,
)
from rmm_gnn.nn import LeanReLU, RMMTorchLinear
from tests.distributed.ddp_job import (
    EXACT,
    ROWS,
    WIDTH,
    GCN2_converted,
    assert_close,
    batch,
    loss_of,
    perceptron,
    ring,
    whole_batch_gradients,
)
from tests.distributed.ranks import all_ranks
from tests.nn.recording import SeedRecorder


def sharded(model: nn.Module, **settings: Any) -> nn.Module:
    """Each layer with parameters a group of its own, as one shards a large model."""
    for child in model.children():
        if any(True for _ in child.parameters()):
            fully_shard(child, **settings)
    return fully_shard(model, **settings)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.full_tensor() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


class PlainTensors(TorchDispatchMode):
    """Fails where one of this library's operators is given something else than plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace == "rmm_gnn":
            self.calls += 1
            for value in args:
                for tensor in value if isinstance(value, list) else [value]:
                    assert not isinstance(tensor, Tensor) or type(tensor) in (Tensor, nn.Parameter), func
                    assert not isinstance(tensor, DTensor), func
        return func(*args, **(kwargs or {}))


def weights_reach_the_operators_whole() -> None:
    for reshard in (True, False):
        model = sharded(convert_to_rmm(perceptron(), EXACT, lean=True), reshard_after_forward=reshard)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
        with PlainTensors() as seen:
            loss_of(model(batch(dist.get_rank()))).backward()
        assert seen.calls > 10


def at_rate_one_the_gradient_is_that_of_the_whole_batch() -> None:
    expected = whole_batch_gradients(perceptron())
    for reshard in (True, False):
        for lean in (False, True):
            model = sharded(convert_to_rmm(perceptron(), EXACT, lean=lean), reshard_after_forward=reshard)
            for _ in range(2):
                model.zero_grad()
                loss_of(model(batch(dist.get_rank()))).backward()
                assert_close(gradients(model), expected)


def every_step_layer_and_rank_draws_its_own_sketch() -> None:
    model, seeds = sharded(GCN2_converted()), []
    for _ in range(3):
        with SeedRecorder() as recorder:
            loss_of(model(torch.randn(ROWS, WIDTH), ring(ROWS))).backward()
        assert sorted(recorder.forward) == sorted(recorder.backward)
        seeds += recorder.forward
    drawn = [seed for seeds in all_ranks(seeds) for seed in seeds]
    assert len(drawn) == 9 * dist.get_world_size() == len(set(drawn))


def accumulation_sums_over_steps() -> None:
    expected = whole_batch_gradients(perceptron(), steps=3)
    model = sharded(convert_to_rmm(perceptron(), EXACT, lean=True))
    for step in range(3):
        model.set_requires_gradient_sync(step == 2)
        loss_of(model(batch(dist.get_rank(), step))).backward()
    assert_close(gradients(model), expected)


def state_dicts_are_those_of_the_plain_model() -> None:
    plain, whole = perceptron(), StateDictOptions(full_state_dict=True)
    model = convert_to_rmm(perceptron(), RMMConfig(rate=0.25), lean=True)
    assert list(model.state_dict()) == list(plain.state_dict())
    sharded(model)
    assert list(model.state_dict()) == list(plain.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_of(model(batch(dist.get_rank()))).backward()
    optimizer.step()
    model.reshard()
    state = get_model_state_dict(model, options=whole)
    assert list(state) == list(plain.state_dict())
    assert all(type(value) is Tensor for value in state.values())
    plain.load_state_dict(state)  # strict
    x = batch(9)
    torch.testing.assert_close(plain.eval()(x), model.eval()(x))
    # And back: weights of a plain model into shards.
    other = perceptron()
    nn.init.ones_(other[0].weight)
    set_model_state_dict(model, other.state_dict(), options=whole)
    torch.testing.assert_close(other.eval()(x), model(x))


def mixed_precision_gives_what_it_gives_the_plain_model() -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    found = []
    for convert in (False, True):
        model = perceptron(torch.float32)
        if convert:
            convert_to_rmm(model, EXACT, lean=True)
        sharded(model, mp_policy=policy)
        with PlainTensors() as seen:
            out = model(batch(dist.get_rank(), dtype=torch.float32))
            assert out.dtype == torch.bfloat16
            loss_of(out.float()).backward()
        assert bool(seen.calls) == convert
        found.append(gradients(model))
    assert_close(found[1], found[0], 0.03)


class Blocks(nn.Module):
    """Two blocks, each of which may be run again in backward."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.5), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
            for _ in range(2)
        )
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.run(block, x)
        return x


def _in_mode(block: nn.Module, x: Tensor) -> Tensor:
    with compress_activations(RMMConfig(rate=0.25)):
        return block(x)


def recomputed_blocks_redraw_their_sketches() -> None:
    x = torch.ones(ROWS, WIDTH, requires_grad=True)
    runs = (
        lambda block, x: block(x),
        partial(checkpoint, use_reentrant=False),
        partial(checkpoint, use_reentrant=True),
    )
    for reshard in (True, False):
        found = []
        for run in runs:
            model = convert_to_rmm(Blocks(run), RMMConfig(rate=0.25), lean=True)
            for block in model.blocks:
                fully_shard(block, reshard_after_forward=reshard)
            fully_shard(model, reshard_after_forward=reshard)
            torch.manual_seed(2)
            for _ in range(2):
                model.zero_grad()
                loss_of(model(x)).backward()
            found.append(gradients(model))
        assert_close(found[1], found[0], 1e-6)
        assert_close(found[2], found[0], 1e-6)


def the_mode_may_be_entered_in_a_recomputed_block() -> None:
    x = torch.ones(ROWS, WIDTH, requires_grad=True)
    for reentrant in (False, True):
        found = []
        for run in (_in_mode, partial(checkpoint, _in_mode, use_reentrant=reentrant)):
            model = Blocks(run)
            for block in model.blocks:
                fully_shard(block)
            fully_shard(model)
            with PlainTensors() as seen:
                loss_of(model(x)).backward()
            assert seen.calls
            found.append(gradients(model))
        # Not the same sketches in both, whose seeds come from elsewhere; gradients of biases are exact.
        assert found[0].keys() == found[1].keys()
        assert all(gradient.isfinite().all() and gradient.any() for gradient in found[1].values())


def the_mode_acts_within_and_around_the_model() -> None:
    expected, x = whole_batch_gradients(perceptron()), batch(dist.get_rank())
    for reshard in (True, False):
        model = sharded(perceptron(), reshard_after_forward=reshard)
        with PlainTensors() as seen, compress_activations(EXACT):
            loss = loss_of(model(x))
        loss.backward()
        assert seen.calls
        assert_close(gradients(model), expected)
        model.zero_grad()
        with compress_activations(EXACT):
            loss_of(model(x)).backward()
        assert_close(gradients(model), expected)

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = perceptron()

        def forward(self, x: Tensor) -> Tensor:
            with compress_activations(EXACT):
                return self.model(x)

    model = sharded(Inside())
    loss_of(model(x)).backward()
    assert_close({name.removeprefix("model."): value for name, value in gradients(model).items()}, expected)


def conversion_of_a_sharded_model() -> None:
    expected = whole_batch_gradients(perceptron())
    model = sharded(perceptron())
    parameters = [id(parameter) for parameter in model.parameters()]
    convert_to_rmm(model, EXACT, lean=True)
    assert isinstance(model[0], RMMTorchLinear) and isinstance(model[0], FSDPModule) and type(model[4]) is LeanReLU
    assert [id(parameter) for parameter in model.parameters()] == parameters
    with PlainTensors() as seen:
        loss_of(model(batch(dist.get_rank()))).backward()
    assert seen.calls
    assert_close(gradients(model), expected)
    revert_rmm(model)
    assert not isinstance(model[0], RMMTorchLinear) and isinstance(model[0], FSDPModule) and type(model[4]) is nn.ReLU
    model.zero_grad()
    with PlainTensors() as seen:
        loss_of(model(batch(dist.get_rank()))).backward()
    assert not seen.calls
    assert_close(gradients(model), expected)


def measuring_sees_sharded_weights() -> None:
    for reshard in (True, False):
        model = sharded(convert_to_rmm(perceptron(), RMMConfig(rate=0.25)), reshard_after_forward=reshard)
        with GradientProbe(model, every=1) as probe:
            for _ in range(2):
                loss_of(model(batch(dist.get_rank()))).backward()
        assert [record.layer for record in probe.records if record.step == 1] == ["5.weight", "3.weight", "0.weight"]
        model = sharded(convert_to_rmm(perceptron(), RMMConfig(rate=0.25)), reshard_after_forward=reshard)
        controller = NoiseController(model, target=0.2, every=1)
        for _ in range(3):
            loss_of(model(batch(dist.get_rank()))).backward()
            controller.step()
        assert all(rate != 0.25 for rate in controller.rates.values())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = NoiseLR(optimizer, model, every=1)
        loss_of(model(batch(dist.get_rank()))).backward()
        optimizer.step()
        scheduler.step()
        assert 0 < scheduler.get_last_lr()[0] < 0.1 and len(set(all_ranks(scheduler.get_last_lr()[0]))) == 1


def reports_leave_a_sharded_model_as_it_was() -> None:
    plain = convert_to_rmm(perceptron(), RMMConfig(rate=0.25), lean=True)
    model, x = sharded(copy.deepcopy(plain)), batch(dist.get_rank())
    loss_of(model(x)).backward()
    before = gradients(model)
    report = memory_report(model, x, loss_fn=loss_of)
    assert report.saved_bytes == memory_report(plain, x, loss_fn=loss_of).saved_bytes
    assert_close(gradients(model), before)
    model.zero_grad()
    loss_of(model(x)).backward()


def copies_are_refused_by_torch() -> None:
    model = sharded(convert_to_rmm(perceptron(), RMMConfig(rate=0.25)))
    with pytest.raises(AssertionError, match="FSDP does not support deepcopy"):
        copy.deepcopy(model)
    with pytest.raises(ValueError, match=r"'model' must not be distributed yet \(got FSDP"):
        plan(model, batch(dist.get_rank()), loss_of, rate=0.5)


def norms_of_rows_are_those_of_the_rank() -> None:
    layer = RMMTorchLinear(WIDTH, WIDTH, config=RMMConfig(rate=0.25, sketch="importance_sampling"))
    model = fully_shard(nn.Sequential(layer))
    x = torch.randn(ROWS, WIDTH) * (1 + dist.get_rank() * torch.arange(ROWS).unsqueeze(1))
    for _ in range(3):
        model(x).square().sum().backward()
    norms = all_ranks(vars(layer)["_rmm_row_norms"].float())
    assert not any(torch.allclose(norms[0], other) for other in norms[1:])


CHECKS = [
    weights_reach_the_operators_whole,
    at_rate_one_the_gradient_is_that_of_the_whole_batch,
    every_step_layer_and_rank_draws_its_own_sketch,
    accumulation_sums_over_steps,
    state_dicts_are_those_of_the_plain_model,
    mixed_precision_gives_what_it_gives_the_plain_model,
    recomputed_blocks_redraw_their_sketches,
    the_mode_may_be_entered_in_a_recomputed_block,
    the_mode_acts_within_and_around_the_model,
    norms_of_rows_are_those_of_the_rank,
    copies_are_refused_by_torch,
    conversion_of_a_sharded_model,
    measuring_sees_sharded_weights,
    reports_leave_a_sharded_model_as_it_was,
]
