"""What a layer holds for importance sampling: the norms of its last gradient's rows, and when they are used."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module, Sequential
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import GCN2Conv, Linear

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm, memory_report, revert_rmm, rmm_linear
from rmm_gnn.nn import RMMGCN2Conv, RMMLinear, RMMTorchLinear
from rmm_gnn.nn._row_norms import forget
from rmm_gnn.sketches import ImportanceSamplingSketch, NormSamplingSketch, Sketch
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors
from tests.nn.test_training_laws import ring

ROWS, CHANNELS = 60, 8
CONFIG = RMMConfig(rate=0.25, sketch="importance_sampling")
X_0 = torch.ones(ROWS, CHANNELS)

LAYERS: dict[str, Callable[[], Module]] = {
    "linear": lambda: RMMLinear(CHANNELS, CHANNELS, config=CONFIG),
    "torch_linear": lambda: RMMTorchLinear(CHANNELS, CHANNELS, config=CONFIG),
    "gcn2": lambda: RMMGCN2Conv(CHANNELS, 0.3, normalize=False, config=CONFIG),
    "gcn2_star": lambda: RMMGCN2Conv(CHANNELS, 0.3, normalize=False, shared_weights=False, config=CONFIG),
}


def call(layer: Module, x: Tensor) -> Tensor:
    return layer(x, X_0, ring()) if isinstance(layer, GCN2Conv) else layer(x)


def held(layer: Module) -> dict[str, Tensor]:
    return {name: value for name, value in vars(layer).items() if name.startswith("_rmm")}


class NormsRecorder(TorchDispatchMode):
    """Notes which norms the operator is given, None where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor | None] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.rmm_gnn.linear.default:
            self.given.append(args[5] if len(args) > 5 else None)
        return func(*args, **(kwargs or {}))


@contextmanager
def norms_given() -> Iterator[list[Tensor | None]]:
    with NormsRecorder() as recorder:
        yield recorder.given


@pytest.fixture(params=LAYERS)
def layer(request) -> Module:
    torch.manual_seed(0)
    return LAYERS[request.param]()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(ROWS, CHANNELS, generator=torch.Generator().manual_seed(1))


def test_forward_draws_by_the_norms_of_the_gradient_before(layer, x):
    gradients = [torch.randn(ROWS, CHANNELS) for _ in range(3)]
    with norms_given() as given:
        for gradient in gradients:
            call(layer, x).backward(gradient)
    assert given[0] is None
    for norms, gradient in zip(given[1:], gradients, strict=False):
        torch.testing.assert_close(norms.float(), gradient.norm(dim=1), rtol=2**-8, atol=0)
    # Two bytes a row, twice between backward and the next forward pass.
    assert sum(norms.nbytes for norms in held(layer).values()) == 2 * 2 * ROWS
    call(layer, x)
    assert sum(norms.nbytes for norms in held(layer).values()) == 2 * ROWS


def test_leading_dimensions_are_rows(x):
    layer = LAYERS["linear"]()
    batch = x.reshape(3, 20, CHANNELS)
    gradient = torch.randn(3, 20, CHANNELS)
    with norms_given() as given:
        layer(batch).backward(gradient)
        layer(x)
    torch.testing.assert_close(given[1].float(), gradient.reshape(ROWS, -1).norm(dim=1), rtol=2**-8, atol=0)


def test_changing_the_output_in_place_is_allowed(x):
    layer, scale = LAYERS["linear"](), torch.arange(ROWS).unsqueeze(1)
    layer(x).mul_(scale).sum().backward()
    expected = (scale * torch.ones(CHANNELS)).norm(dim=1)
    torch.testing.assert_close(held(layer)["_rmm_next_row_norms"].float(), expected, rtol=2**-8, atol=0)


def test_another_number_of_rows_starts_without_norms(x):
    layer = LAYERS["linear"]()
    with norms_given() as given:
        for rows in (x, x[:40], x[:40], x):
            layer(rows).square().sum().backward()
    assert [norms is not None for norms in given] == [False, False, True, False]


def test_another_device_starts_without_norms():
    layer = RMMTorchLinear(CHANNELS, CHANNELS, config=CONFIG)
    layer(torch.randn(ROWS, CHANNELS)).sum().backward()
    layer.to("meta").train()
    assert layer(torch.empty(ROWS, CHANNELS, device="meta")).shape == (ROWS, CHANNELS)


def test_another_type_keeps_its_norms(x):
    layer = LAYERS["torch_linear"]()
    layer(x).sum().backward()
    with norms_given() as given:
        layer.double()(x.double()).sum().backward()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            layer.float()(x).sum().backward()
    assert all(norms is not None for norms in given)
    assert layer.weight.grad.isfinite().all()


def test_a_gradient_that_is_not_finite_does_no_harm_to_the_next_step(x):
    layer = LAYERS["linear"]()
    layer(x).backward(torch.full((ROWS, CHANNELS), float("nan")))
    layer.weight.grad = None
    assert not held(layer)["_rmm_next_row_norms"].isfinite().any()
    layer(x).sum().backward()
    assert layer.weight.grad.isfinite().all() and held(layer)["_rmm_next_row_norms"].isfinite().all()


def test_the_estimate_is_unbiased_where_the_gradient_moves_to_rows_that_had_none():
    """The gradient lives on either half of the rows in turn, so the norms are always zero where it is."""
    layer = RMMTorchLinear(3, 2, bias=False, config=RMMConfig(rate=0.6, sketch="importance_sampling", center=False))
    generator = torch.Generator().manual_seed(3)
    x, gradient = torch.rand(2000, 3, generator=generator) + 0.5, torch.rand(2000, 2, generator=generator) + 0.5
    first, second = gradient.clone(), gradient.clone()
    first[1000:], second[:1000] = 0, 0

    def draw() -> Tensor:
        layer(x).backward(first)
        layer.weight.grad = None
        layer(x).backward(second)
        return layer.weight.grad

    assert_unbiased(draw, second.T @ x, draws=600)


def test_nothing_is_held_without_training(layer, x):
    call(layer.eval(), x).sum().backward()
    assert not held(layer)
    with torch.no_grad():
        call(layer.train(), x)
    assert not held(layer)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    call(layer, x.requires_grad_()).sum().backward()
    assert not held(layer)
    other = RMMTorchLinear(CHANNELS, CHANNELS, rate=0.2, sketch="norm_sampling")
    other(x).sum().backward()
    assert not held(other)


def test_the_norms_are_no_part_of_the_state_dict(layer, x):
    keys = list(layer.state_dict())
    call(layer, x).sum().backward()
    call(layer, x).sum().backward()
    assert list(layer.state_dict()) == keys and not list(layer.buffers())
    layer.load_state_dict(layer.state_dict())


def test_copies_have_norms_of_their_own(layer, x):
    call(layer, x).sum().backward()
    found = held(layer)["_rmm_next_row_norms"].clone()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(held(twin)["_rmm_next_row_norms"], found)
        call(twin, x).backward(torch.randn(ROWS, CHANNELS))
        assert torch.equal(held(layer)["_rmm_next_row_norms"], found)


def test_converting_and_reverting_drop_the_norms(x):
    for make in (torch.nn.Linear, Linear):
        layer = convert_to_rmm(make(CHANNELS, CHANNELS), CONFIG)
        before = set(vars(layer))
        layer(x).sum().backward()
        assert held(layer)
        convert_to_rmm(layer, RMMConfig(rate=0.5))
        assert set(vars(layer)) == before
        convert_to_rmm(layer, CONFIG)
        layer(x).sum().backward()
        revert_rmm(layer)
        assert not held(layer) and type(layer) is make


def test_a_memory_report_leaves_the_norms_as_they_were(x):
    model = Sequential(LAYERS["linear"](), torch.nn.ReLU(), LAYERS["torch_linear"]())
    for _ in range(2):
        model(x).square().sum().backward()
    before = [held(layer) for layer in model]
    memory_report(model, 5 * x)
    assert all(
        after.keys() == found.keys() and all(after[name] is found[name] for name in found)
        for found, after in zip(before, (held(layer) for layer in model), strict=True)
    )


def test_saved_bytes_are_those_of_the_config_with_norms_and_without(x):
    layer = LAYERS["linear"]()
    for _ in range(2):
        with saved_tensors() as saved:
            out = layer(x)
        assert sum(kept_storages(saved, besides=layer.parameters()).values()) == CONFIG.saved_bytes(ROWS, CHANNELS)
        out.sum().backward()


def test_nothing_of_the_step_outlives_backward(layer, x):
    h = x.clone().requires_grad_()
    for _ in range(2):
        inner = h * 2
        out = call(layer, inner)
        alive = [weakref.ref(tensor) for tensor in (inner, out)]
        out.square().sum().backward()
        del inner, out
        gc.collect()
        assert not any(tensor() is not None for tensor in alive)
    assert all(norms.grad_fn is None and not norms.requires_grad for norms in held(layer).values())


@pytest.mark.parametrize("name", LAYERS)
def test_the_graph_does_not_hold_the_layer(name, x):
    layer = LAYERS[name]()
    out, alive = call(layer, x.requires_grad_()), weakref.ref(layer)
    del layer
    gc.collect()
    assert alive() is None
    out.sum().backward()
    assert x.grad is not None


def test_a_layer_called_twice_in_a_step_draws_both_times_by_the_step_before(x):
    layer = LAYERS["linear"]()
    with norms_given() as given:
        for _ in range(2):
            layer(torch.tanh(layer(x))).square().sum().backward()
    assert given[0] is given[1] is None
    assert given[2] is not None and torch.equal(given[2], given[3])


@pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "hooks"])
def test_recomputing_finds_the_norms_of_the_first_pass(x, use_reentrant):
    """One layer in two checkpointed blocks: it has a new gradient already when the first block is recomputed."""

    def steps(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        torch.manual_seed(1)
        forget(layer)
        grads = []
        for _ in range(3):
            layer.weight.grad = None
            run(torch.tanh(run(x))).square().sum().backward()
            grads.append(layer.weight.grad)
        return grads

    layer = LAYERS["linear"]()
    x.requires_grad_()
    plain = steps(layer)
    recomputed = steps(lambda h: checkpoint(layer, h, use_reentrant=use_reentrant))
    for expected, actual in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_layers_share_no_sketch_that_was_drawn_by_norms(x):
    layers = [LAYERS["linear"]() for _ in range(2)]
    for shared in (True, False):
        with compress_activations(RMMConfig(rate=0.5)), saved_tensors() as saved:
            out = sum(layer(x) for layer in layers)
        kept = sum(kept_storages(saved, besides=[p for layer in layers for p in layer.parameters()]).values())
        assert kept == (1 if shared else 2) * CONFIG.saved_bytes(ROWS, CHANNELS)
        out.square().sum().backward()


def test_functions_under_the_context_sample_by_norm(x):
    model = torch.nn.Linear(CHANNELS, 4)

    def gradients(sketch: Sketch) -> list[Tensor]:
        torch.manual_seed(0)
        found = []
        for _ in range(2):  # also where there has been a gradient
            with compress_activations(RMMConfig(rate=0.5, sketch=sketch)):
                found.append(torch.autograd.grad(model(x).square().sum(), model.weight)[0])
        return found

    ours, plain = gradients(ImportanceSamplingSketch(0.3)), gradients(NormSamplingSketch(0.3))
    assert not held(model) and not torch.equal(*ours)
    assert all(torch.equal(first, second) for first, second in zip(ours, plain, strict=True))


def test_while_a_cuda_graph_captures_layers_sample_by_norm(x, monkeypatch):
    """A graph would read the norms of its capture at every replay; so it neither reads nor leaves any."""
    layer = LAYERS["torch_linear"]()

    def gradient() -> Tensor:
        torch.manual_seed(4)
        return torch.autograd.grad(layer(x).square().sum(), layer.weight)[0]

    without = gradient()
    before = held(layer)
    with monkeypatch.context() as patched:
        patched.setattr("rmm_gnn.nn._row_norms._is_captured", lambda x: True)
        for _ in range(2):
            assert torch.equal(gradient(), without)
        assert list(held(layer)) == list(before)
    assert not torch.allclose(gradient(), without)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_layers_sample_by_norm(x, backend):
    """They hold no norms, and pass over those of eager steps before: the same gradient in every such step."""
    torch._dynamo.reset()
    model = Sequential(LAYERS["torch_linear"](), torch.nn.ReLU(), LAYERS["torch_linear"]())
    compiled = torch.compile(model, backend=backend, fullgraph=True)

    def gradient(run: Callable[[Tensor], Tensor]) -> Tensor:
        torch.manual_seed(4)
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(run(x).square().sum(), model.parameters())])

    without = gradient(model)
    before = [held(layer) for layer in model]
    for _ in range(2):
        torch.testing.assert_close(gradient(compiled), without, rtol=1e-4, atol=1e-4)
    assert [list(held(layer)) for layer in model] == [list(found) for found in before]
    assert not torch.allclose(gradient(model), without)
    torch._dynamo.reset()


def test_the_functional_form_takes_norms_under_the_compiler(x):
    torch._dynamo.reset()
    weights = [torch.randn(CHANNELS, CHANNELS, requires_grad=True) for _ in range(2)]
    norms = torch.rand(ROWS) + 0.1

    def run(x: Tensor, norms: Tensor) -> Tensor:
        h = rmm_linear(x, weights[0], config=CONFIG, row_norms=norms).relu()
        return rmm_linear(h, weights[1], config=CONFIG, row_norms=norms)

    compiled, grads = torch.compile(run, backend="inductor", fullgraph=True), []
    for function in (run, compiled):
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(function(x, norms).square().sum(), weights))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-3)
    torch._dynamo.reset()


@pytest.mark.parametrize("grad", [True, False])
def test_the_operator_does_as_it_is_registered(x, grad):
    weight = torch.randn(3, CHANNELS, requires_grad=grad)
    arguments = (x.requires_grad_(grad), weight, None, torch.tensor(11), CONFIG.spec, torch.rand(ROWS))
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.rmm_gnn.linear.default, arguments, test_utils=checks)


@pytest.mark.parametrize(
    ("norms", "config", "error", "match"),
    [
        (
            torch.ones(ROWS),
            RMMConfig(),
            ValueError,
            r"'row_norms' must come with a family that reads them \(got 'count",
        ),
        (
            torch.ones(ROWS - 1),
            CONFIG,
            ValueError,
            r"'row_norms' must have one number for each of the 60 rows .*\(59,\)",
        ),
        (torch.ones(ROWS, 1), CONFIG, ValueError, r"'row_norms' must have one number for each"),
        (torch.ones(ROWS, device="meta"), CONFIG, ValueError, r"'row_norms' must be on the device of 'x', cpu"),
        (torch.ones(ROWS, dtype=torch.int64), CONFIG, TypeError, "'row_norms' must be of type float32"),
        ([1.0] * ROWS, CONFIG, TypeError, "'row_norms' must be a tensor"),
    ],
)
def test_errors(x, norms, config, error, match):
    with pytest.raises(error, match=match):
        rmm_linear(x, torch.ones(3, CHANNELS, requires_grad=True), config=config, row_norms=norms)
