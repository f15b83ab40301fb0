"""Under torch.compile a row mask does what it does without: the number of its rows is one of the graph's sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from rmm_gnn import RMMConfig, compress_activations, rmm_linear
from rmm_gnn.diagnostics import check_row_masks
from tests.nn.recording import kept_storages, one_thread, saved_tensors

BATCH, LENGTH, WIDTH = 4, 32, 8
CONFIG = RMMConfig(rate=0.25)
OPS = torch.ops.rmm_gnn


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with one_thread():
        yield
    torch._dynamo.reset()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(BATCH, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))


def mask_of(*lengths: int) -> Tensor:
    return torch.arange(LENGTH) < torch.tensor(lengths).unsqueeze(1)


def two_layers(config: RMMConfig):
    """The second layer reads what the first one makes; each draws an S of its own."""
    weights = [torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(2)]

    def run(x: Tensor, mask: Tensor | None) -> Tensor:
        for weight in weights:
            x = rmm_linear(torch.tanh(x), weight, config=config, row_mask=mask)
        return x

    return run, weights


def grads(run, weights: list[Tensor], x: Tensor, mask: Tensor, seed: int = 3) -> tuple[Tensor, ...]:
    torch.manual_seed(seed)
    out = run(x, mask)
    return torch.autograd.grad((out * mask.unsqueeze(-1)).square().sum(), weights)


MASKS = [mask_of(32, 3, 17, 8), mask_of(1, 0, 0, 0), mask_of(9, 9, 9, 31), mask_of(*[LENGTH] * 4), mask_of(0, 0, 0, 0)]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("config", [CONFIG, RMMConfig(size=20, codec="int4", sketch="norm_sampling")])
def test_one_graph_serves_all_masks(backend, config, x):
    run, weights = two_layers(config)
    compiled = torch.compile(run, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for mask in MASKS:
            found, expected = (grads(call, weights, x, mask) for call in (compiled, run))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert counters["stats"]["unique_graphs"] == 1


def test_kept_are_the_marked_rows(x):
    run, weights = two_layers(CONFIG)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for mask in MASKS[:3]:
        with saved_tensors() as saved:
            compiled(x, mask)
        tanh = x.nbytes  # of the second layer's input, for the gradient of tanh
        kept = kept_storages(saved, besides=[*weights, mask])
        assert sum(kept.values()) == tanh + 2 * CONFIG.saved_bytes(int(mask.sum()), WIDTH)


@pytest.mark.parametrize("capture", [True, False])
def test_without_fullgraph_the_graph_breaks_and_the_gradients_are_right(x, capture):
    run, weights = two_layers(CONFIG)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=capture):
        compiled = torch.compile(run, backend="aot_eager")
        for mask in MASKS:
            torch.testing.assert_close(grads(compiled, weights, x, mask), grads(run, weights, x, mask))
    assert bool(counters["graph_break"]) != capture


@pytest.mark.parametrize("inside", [True, False], ids=["mode inside", "mode outside"])
@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_mode_with_a_mask(x, inside, fullgraph):
    layers = [torch.nn.Linear(WIDTH, WIDTH) for _ in range(2)]
    weights = [layer.weight for layer in layers]

    def model(x: Tensor) -> Tensor:
        return layers[1](torch.tanh(layers[0](x)))

    def within(x: Tensor, mask: Tensor) -> Tensor:
        with compress_activations(CONFIG, row_mask=mask):
            return model(x)

    compiled_model = torch.compile(model, backend="aot_eager", fullgraph=fullgraph)

    def outside(x: Tensor, mask: Tensor) -> Tensor:
        with compress_activations(CONFIG, row_mask=mask):
            return compiled_model(x)

    compiled = torch.compile(within, backend="aot_eager", fullgraph=fullgraph) if inside else outside
    for mask in MASKS[:3]:
        torch.testing.assert_close(grads(compiled, weights, x, mask), grads(within, weights, x, mask))


@pytest.mark.parametrize("fullgraph", [True, False])
def test_the_check_travels_with_the_compiled_call(x, fullgraph):
    run, weights = two_layers(CONFIG)
    compiled = torch.compile(run, backend="aot_eager", fullgraph=fullgraph)
    unchecked = compiled(x, MASKS[0])
    with check_row_masks():
        checked = compiled(x, MASKS[0])
    torch.autograd.grad(unchecked.sum(), weights)
    with pytest.raises(RuntimeError, match="got 68 of 68 masked rows"):
        torch.autograd.grad(checked.sum(), weights)
    torch.autograd.grad(compiled(x, MASKS[0]).sum(), weights)


@pytest.mark.parametrize("family", ["count_sketch", "importance_sampling", "sors"])
def test_the_operators_do_as_they_are_registered(family):
    spec = RMMConfig(rate=0.3, sketch=family).spec
    x, weight = torch.randn(20, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    seed, mask = torch.tensor(11), torch.arange(20).view(4, 5) % 3 > 0
    checks = ("test_schema", "test_faketensor")
    gradients = (*checks, "test_autograd_registration", "test_aot_dispatch_static")
    masked = (mask, 13, False)
    torch.library.opcheck(OPS.linear.default, (x, weight, None, seed, spec, None, *masked), test_utils=gradients)
    torch.library.opcheck(OPS.compress.default, (x.detach(), seed, spec, *masked[:2]), test_utils=checks)
    kept = OPS.compress(x.detach(), seed, spec, *masked[:2])
    for given in (kept, []):
        torch.library.opcheck(OPS.linear_of_kept.default, (x, weight, None, given, spec, *masked), test_utils=gradients)
    arguments = (torch.randn(20, 3), kept[1:], kept[0], 4, spec, mask, 13, True)
    arguments[0][~mask.flatten()] = 0
    torch.library.opcheck(OPS.linear_weight_grad.default, arguments, test_utils=checks)
