"""What holds for every layer in training: when S is drawn, what is kept, and what raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from rmm_gnn import RMMConfig, draw_seed, rmm_linear
from rmm_gnn.nn import RMMGCN2Conv, RMMLinear, RMMTorchLinear
from rmm_gnn.nn._row_norms import forget
from tests.nn.recording import SeedRecorder, assert_unbiased, kept_storages, saved_tensors

ROWS, CHANNELS = 60, 8
X_0 = torch.ones(ROWS, CHANNELS)
CONFIG = RMMConfig(rate=0.25)
IMPORTANCE = RMMConfig(rate=0.25, sketch="importance_sampling")


def ring() -> Tensor:
    """Each row takes in itself and the next one."""
    nodes = torch.arange(ROWS)
    edges = torch.cat([torch.stack([nodes, nodes]), torch.stack([nodes, (nodes + 1) % ROWS])], 1)
    values = torch.full((2 * ROWS,), 0.5)
    return torch.sparse_coo_tensor(edges, values, (ROWS, ROWS), check_invariants=True).to_sparse_csr()


@dataclass(frozen=True)
class Case:
    """A layer, how it is called, and the name of the weight whose gradient is estimated."""

    make: Callable[[], Module]
    weight: str = "weight"
    graph: bool = False

    def call(self, layer: Module, x: Tensor) -> Tensor:
        return layer(x, X_0, ring()) if self.graph else layer(x)

    def weight_of(self, layer: Module) -> Tensor:
        return getattr(layer, self.weight)

    def weight_grad(self, layer: Module, x: Tensor) -> Tensor:
        return torch.autograd.grad(self.call(layer, x).square().sum(), self.weight_of(layer))[0]


def gcn2(config: RMMConfig = CONFIG, **arguments) -> Case:
    def make() -> Module:
        return RMMGCN2Conv(CHANNELS, 0.3, normalize=False, config=config, **arguments)

    return Case(make, "weight1", graph=True)


CASES = {
    "linear": Case(lambda: RMMLinear(CHANNELS, CHANNELS, config=CONFIG)),
    "torch_linear": Case(lambda: RMMTorchLinear(CHANNELS, CHANNELS, config=CONFIG)),
    "gcn2": gcn2(),
    "gcn2_star": gcn2(theta=0.5, layer=1, shared_weights=False),
    "importance": Case(lambda: RMMLinear(CHANNELS, CHANNELS, config=IMPORTANCE)),
    "gcn2_importance": gcn2(config=IMPORTANCE),
    "gcn2_anchored": gcn2(replace(CONFIG, anchor=True, x0_codec="int4")),
    "gcn2_star_anchored": gcn2(replace(CONFIG, anchor=True), theta=0.5, layer=1, shared_weights=False),
}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    torch.manual_seed(0)
    return CASES[request.param]


@pytest.fixture
def x(case) -> Tensor:
    return torch.randn(ROWS, CHANNELS)


def test_every_step_and_every_layer_has_a_sketch_of_its_own(case, x):
    layers = [case.make() for _ in range(3)]
    seeds = []
    for _ in range(4):
        with SeedRecorder() as recorder:
            out = x
            for layer in layers:
                out = case.call(layer, out)
            out.sum().backward()
        assert recorder.backward == recorder.forward[::-1], "backward must use the S of forward"
        seeds += recorder.forward
    assert len(set(seeds)) == len(seeds) == 4 * len(layers)


def test_the_same_data_gives_another_estimate_at_every_step(case, x):
    layer = case.make()
    grads = [case.weight_grad(layer, x) for _ in range(3)]
    assert not any(torch.equal(grads[i], grads[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_a_layer_called_twice_in_one_step_draws_twice(case, x):
    layer = case.make()
    with SeedRecorder() as recorder:
        (case.call(layer, x) * case.call(layer, x)).sum().backward()
    assert len(set(recorder.forward)) == 2 and set(recorder.backward) == set(recorder.forward)


def test_manual_seed_replays_bit_for_bit(case, x):
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        layer = case.make()
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            case.call(layer, x).square().mean().backward()
            optimizer.step()
        runs.append([parameter.detach().clone() for parameter in layer.parameters()])
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_retain_graph_uses_the_same_sketch_again(case, x):
    layer = case.make()
    loss = case.call(layer, x).square().sum()
    first, second = (torch.autograd.grad(loss, case.weight_of(layer), retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_eval_draws_nothing_and_sketches_nothing(case, x):
    layer = case.make().eval()
    before = torch.get_rng_state()
    with SeedRecorder() as recorder, saved_tensors() as saved:
        case.call(layer, x).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert not recorder.forward and not any(tensor.dtype == torch.int64 and tensor.dim() == 0 for tensor in saved)
    with torch.no_grad(), saved_tensors() as saved:
        case.call(layer, x)
    assert not saved


def test_a_frozen_weight_draws_nothing_and_keeps_nothing_of_the_input(case, x):
    layer = case.make()
    case.weight_of(layer).requires_grad_(False)
    x.requires_grad_()
    before = torch.get_rng_state()
    with SeedRecorder() as recorder, saved_tensors() as saved:
        out = case.call(layer, x)
    assert torch.equal(torch.get_rng_state(), before) and not recorder.forward
    assert all(size < x.nbytes for size in kept_storages(saved, besides=[*layer.parameters(), X_0]).values())
    out.sum().backward()
    assert x.grad is not None and case.weight_of(layer).grad is None


def test_training_draws_with_grad_mode_off_too(case, x):
    # Reentrant checkpointing runs its first pass so: a generator that stands still there repeats S at every step.
    layer = case.make()
    before = torch.get_rng_state()
    with torch.no_grad(), saved_tensors() as saved:
        case.call(layer, x)
    assert not torch.equal(torch.get_rng_state(), before) and not saved


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
def test_checkpointing_recomputes_with_the_same_sketch_and_draws_anew_at_each_step(case, x, use_reentrant):
    x.requires_grad_()
    layers = [case.make() for _ in range(2)]

    def block(h: Tensor) -> Tensor:
        for layer in layers:
            h = case.call(layer, h).relu()
        return h

    def steps(run: Callable[[Tensor], Tensor]) -> list[list[Tensor]]:
        torch.manual_seed(1)
        for layer in layers:
            forget(layer)  # the norms of an earlier run
        weights = [case.weight_of(layer) for layer in layers]
        grads = []
        for _ in range(3):
            for weight in weights:
                weight.grad = None
            run(x).square().sum().backward()
            grads.append([weight.grad for weight in weights])
        return grads

    plain = steps(block)
    recomputed = steps(lambda h: checkpoint(block, h, use_reentrant=use_reentrant))
    for expected, actual in zip(plain, recomputed, strict=True):
        assert all(torch.equal(first, second) for first, second in zip(expected, actual, strict=True))
    assert not torch.equal(recomputed[0][0], recomputed[1][0]) and not torch.equal(recomputed[1][0], recomputed[2][0])


def test_the_input_may_be_changed_in_place_after_the_call(case, x):
    layer = case.make()
    torch.manual_seed(2)
    expected = case.weight_grad(layer, x.clone())
    forget(layer)
    torch.manual_seed(2)
    out = case.call(layer, x)
    x.fill_(float("nan"))
    assert torch.equal(torch.autograd.grad(out.square().sum(), case.weight_of(layer))[0], expected)


@pytest.mark.parametrize("name", ["linear", "torch_linear", "gcn2", "gcn2_anchored"])
def test_changing_the_weight_in_place_raises(name):
    case = CASES[name]
    layer = case.make()
    out = case.call(layer, torch.randn(ROWS, CHANNELS, requires_grad=True))
    with torch.no_grad():
        case.weight_of(layer).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_gcn2_with_an_identity_mapping_keeps_the_matrix_it_multiplied_with():
    # There the product's matrix is not the weight: changing the weight is harmless.
    case = CASES["gcn2_star"]
    layer = case.make()
    x = torch.randn(ROWS, CHANNELS, requires_grad=True)
    (expected,) = torch.autograd.grad(case.call(layer, x).sum(), x)
    out = case.call(layer, x)
    with torch.no_grad():
        layer.weight1.mul_(2)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], expected)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("sketch", ["count_sketch", "row_sampling"])
@pytest.mark.parametrize("center", [True, False])
def test_inf_and_nan_reach_the_weight_gradient(case, x, value, sketch, center):
    layer = case.make()
    layer.config = replace(layer.config, rate=0.1, sketch=sketch, center=center)
    for row in (0, 17):
        spoilt = x.clone()
        spoilt[row, 3] = value
        grad = torch.autograd.grad(case.call(layer, spoilt).nan_to_num().sum(), case.weight_of(layer))[0]
        assert not grad.isfinite().all()
        out = case.call(layer, x)
        spoilt = torch.ones_like(out)
        spoilt[row, 3] = value
        assert not torch.autograd.grad(out, case.weight_of(layer), spoilt)[0].isfinite().all()


def test_double_backward_raises(case, x):
    layer = case.make()
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(case.call(layer, x).square().sum(), x, create_graph=True)


def test_saved_bytes_of_the_linear_layers_are_those_of_the_config():
    for name in ("linear", "torch_linear"):
        for inner in (False, True):
            layer = CASES[name].make()
            with saved_tensors() as saved:
                layer(torch.randn(ROWS, CHANNELS, requires_grad=inner))
            kept = kept_storages(saved, besides=layer.parameters())
            assert sum(kept.values()) == CONFIG.saved_bytes(ROWS, CHANNELS)
            assert (
                any(tensor is layer.weight or tensor.data_ptr() == layer.weight.data_ptr() for tensor in saved) == inner
            )


def test_a_generator_of_its_own_leaves_the_default_one_alone():
    weight = torch.randn(4, CHANNELS, requires_grad=True)
    x = torch.randn(ROWS, CHANNELS)
    grads = []
    before = torch.get_rng_state()
    for start in (3, 3, 4):
        generator = torch.Generator().manual_seed(start)
        out = rmm_linear(x, weight, config=CONFIG, seed=draw_seed(x, generator))
        grads.append(torch.autograd.grad(out.square().sum(), weight)[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(grads[0], grads[1]) and not torch.equal(grads[0], grads[2])


def test_a_sketch_kept_by_selective_checkpointing_keeps_its_seed():
    """The sketch is saved, the seed would be drawn anew: both must come from the same pass."""
    torch.manual_seed(0)
    layer, x = RMMTorchLinear(6, 4, rate=0.3), torch.rand(400, 6) + 1.0

    def policy(ctx, op, *args, **kwargs):
        kept = op in (torch.ops.rmm_gnn.linear.default, torch.ops.rmm_gnn.linear)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    def draw():
        layer.weight.grad = None
        context = partial(create_selective_checkpoint_contexts, policy)
        out = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False, context_fn=context)
        out.sum().backward()
        return layer.weight.grad

    exact = torch.ones(4, 1) @ x.sum(0, keepdim=True)
    assert_unbiased(draw, exact, draws=60)


def test_layers_run_on_meta_tensors():
    for layer in (RMMTorchLinear(6, 4, device="meta"), RMMLinear(6, 4).to("meta")):
        assert layer.train()(torch.empty(10, 6, device="meta")).shape == (10, 4)


def test_a_config_given_by_position_is_refused():
    for layer in (RMMTorchLinear, RMMLinear):
        with pytest.raises(TypeError, match="'config' must be given by keyword"):
            layer(6, 4, RMMConfig())
