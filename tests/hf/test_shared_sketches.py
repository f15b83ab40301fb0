"""Layers that read one tensor keep one sketch of it, in every family, and under activation checkpointing."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.nn import Linear, Module, ModuleDict
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("transformers")

from rmm_gnn import RMMConfig, compress_activations, memory_report
from rmm_gnn.hf import apply_rmm
from tests.hf.models import BATCH, HIDDEN, LENGTH, batch, build
from tests.nn.recording import SeedRecorder, assert_unbiased

CONFIG = RMMConfig(rate=0.25, codec="int8")
ROWS = BATCH * LENGTH


def bytes_of(*inputs: tuple[int, int]) -> int:
    """What is kept of inputs of so many rows and columns."""
    return sum(CONFIG.saved_bytes(rows, columns) for rows, columns in inputs)


def kept_by_linear(model, inputs) -> int:
    """Bytes that the operators of linear layers keep, parameters excepted."""
    report = memory_report(model, **inputs, loss_fn=lambda out: out.loss)
    return sum(entry.saved_bytes for entry in report.entries if entry.operator.startswith("rmm_gnn.linear"))


NARROW, WIDE, FIRST = (ROWS, HIDDEN), (ROWS, 64), (BATCH, HIDDEN)
# One input for query, key and value, one or two for what follows attention, whose output is kept by its kernel.
BLOCK = [NARROW, NARROW, WIDE]
SHARED = {
    "bert": [*BLOCK, *BLOCK, FIRST, FIRST],
    "roberta": [*BLOCK, *BLOCK, FIRST, FIRST],
    "distilbert": [*BLOCK, *BLOCK, FIRST, FIRST],
    "albert": [(ROWS, 16), *BLOCK, *BLOCK, FIRST, FIRST],
    "gpt2": [*[NARROW, NARROW, (ROWS, 4 * HIDDEN)] * 2, NARROW],
    "llama": [*BLOCK, *BLOCK, NARROW],
    # The decoder attends to itself and, in keys and values of both layers, to the encoder's output.  Attention to
    # itself has a trained bias, which no fused kernel takes.
    "t5": [*[NARROW, *BLOCK] * 2, *[NARROW, NARROW, NARROW, NARROW, WIDE] * 2, NARROW, NARROW],
}
ALONE = {
    "bert": [*[NARROW] * 2, *BLOCK, *[NARROW] * 2, *BLOCK, FIRST, FIRST],
    "llama": [*[NARROW] * 3, *BLOCK, *[NARROW] * 3, *BLOCK, NARROW],
}


@pytest.mark.parametrize("name", SHARED)
def test_what_linear_layers_keep_is_one_sketch_for_every_tensor_they_read(name):
    model = apply_rmm(build(name), CONFIG)
    expected = list(SHARED[name])
    if (
        name == "t5" and not model._supports_sdpa
    ):  # transformers 5.0: no kernel keeps what attention to the encoder gives
        expected += [NARROW, NARROW]
    assert kept_by_linear(model, batch(name)) == bytes_of(*expected)


@pytest.mark.parametrize("name", ALONE)
def test_without_sharing_every_layer_keeps_its_own(name):
    model = apply_rmm(build(name), CONFIG, share=False)
    assert kept_by_linear(model, batch(name)) == bytes_of(*ALONE[name])


def test_under_autocast_sketches_are_of_the_low_type():
    """Beside them, as in stock layers, each keeps a low-precision copy of its weight for the gradient of its input."""
    model = apply_rmm(build("bert"), RMMConfig(rate=0.25))
    weights = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, Linear) and not name.endswith("attention.output.dense")  # which is exact
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kept = kept_by_linear(model, batch("bert"))
    sketches = [RMMConfig(rate=0.25).saved_bytes(*shape, torch.bfloat16) for shape in SHARED["bert"]]
    assert kept == sum(sketches) + 2 * weights


def test_applying_again_can_end_the_sharing():
    model = apply_rmm(apply_rmm(build("bert"), CONFIG), CONFIG, share=False)
    assert kept_by_linear(model, batch("bert")) == bytes_of(*ALONE["bert"])


def test_layers_that_are_converted_one_after_the_other_share():
    model = build("bert")
    for end in ("query", "key", "value"):
        apply_rmm(model, CONFIG, [end])
    assert kept_by_linear(model, batch("bert")) == bytes_of(NARROW, NARROW)


class Attention(ModuleDict):
    """Three layers that read one tensor, and one that reads another."""

    def __init__(self) -> None:
        super().__init__({name: Linear(8, 8) for name in ("query", "key", "value", "out")})

    def forward(self, x: Tensor) -> Tensor:
        return self["out"](self["query"](x) * self["key"](x) + self["value"](x))


class Doubled(Attention):
    """The same, reading what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(2 * x)


def attention(kind: type = Attention, **settings) -> Attention:
    torch.manual_seed(0)
    return apply_rmm(kind(), {"rate": 0.25}, **settings)


class Sketches(TorchDispatchMode):
    """Counts the sketches that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.rmm_gnn.compress.default, torch.ops.rmm_gnn.linear.default)
        return func(*args, **(kwargs or {}))


def step(model: Module, x: Tensor) -> tuple[int, list[int]]:
    """How many sketches forward makes, and the seeds that backward uses, from the last layer to the first."""
    with Sketches() as sketches, SeedRecorder() as seeds:
        model(x).sum().backward()
    return sketches.count, seeds.backward


@pytest.mark.parametrize("kind", [Attention, Doubled])
def test_every_step_sketches_afresh(kind):
    """Also where it reads the very same tensor, as a layer that comes first does with a batch that a loop holds."""
    model, x, seen = attention(kind), torch.randn(40, 8), set()
    for _ in range(4):
        count, seeds = step(model, x)
        assert count == 2 and len(seeds) == 4 and len(set(seeds)) == 2
        seen |= set(seeds)
    assert len(seen) == 8


def test_two_passes_before_backward_sketch_afresh():
    model, x = attention(), torch.randn(40, 8)
    with SeedRecorder() as seeds:
        (model(x).sum() + model(x).sum()).backward()
    assert len(seeds.backward) == 8 and len(set(seeds.backward)) == 4


def test_the_draws_are_those_without_sharing():
    """A layer draws its seed whether or not it finds a sketch, so a recomputation draws what the first pass drew."""
    states = []
    for share in (True, False):
        model = attention(share=share)
        torch.manual_seed(5)
        model(torch.ones(40, 8)).sum().backward()
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_a_changed_tensor_is_sketched_anew():
    class Changing(Attention):
        def forward(self, x: Tensor) -> Tensor:
            out = self["query"](x) + self["key"](x)
            return out + self["value"](x.mul_(-3.0))

    model, plain = attention(Changing), Changing()
    plain.load_state_dict(model.state_dict())
    apply_rmm(model, {"rate": 1.0, "sketch": "row_sampling"})
    x = torch.randn(40, 8)
    with torch.no_grad():
        exact = x.sum(0), -3.0 * x.sum(0)
    model(x.clone()).sum().backward()
    torch.testing.assert_close(model["key"].weight.grad[0], exact[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model["value"].weight.grad[0], exact[1], rtol=1e-4, atol=1e-4)


def test_estimates_from_a_shared_sketch_are_unbiased():
    model, x = attention(), 1 + torch.randn(40, 8)
    weights = [model[name].weight for name in ("query", "key", "value")]

    def draw() -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(model(x).square().sum(), weights)])

    model.eval()
    exact = draw()
    model.train()
    assert_unbiased(draw, exact, draws=400)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copy_shares_among_its_own_layers_alone(way):
    model, x = attention(), torch.randn(40, 8)
    other = way(model)
    places = {id(layer.sketches) for layer in other.values()}
    assert len(places) == 1 and places != {id(model["query"].sketches)}
    model(x)  # what the model has read, the copy has not
    assert step(other, x)[0] == 2


def test_nothing_is_held_when_a_step_is_over():
    model = attention()
    step(model, torch.randn(40, 8))
    assert len(model["query"].sketches._readings) == 0


def test_frozen_layers_neither_share_nor_draw():
    model, x = attention(), torch.randn(40, 8)
    model["query"].requires_grad_(False)
    model["key"].requires_grad_(False)
    assert step(model, x)[0] == 2
    model["value"].requires_grad_(False)
    model["out"].requires_grad_(False)
    state = torch.get_rng_state()
    model(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("inside", [False, True])
def test_compress_activations_shares_no_less(inside):
    model, x = attention(Doubled), torch.randn(40, 8)
    with Sketches() as sketches:
        with compress_activations(RMMConfig(rate=0.5)) if inside else torch.enable_grad():
            loss = model(x).sum()
        loss.backward()
    assert sketches.count == 2


def test_traced_layers_keep_their_own():
    """Tracing cannot look tensors up; what is right is right without sharing."""
    model, x = attention(), torch.randn(40, 8)
    exact = torch.autograd.grad(model.eval()(x).square().sum(), model["key"].weight)[0]
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    draws = [torch.autograd.grad(compiled(x).square().sum(), model["key"].weight)[0] for _ in range(100)]
    assert not torch.equal(draws[0], draws[1])
    assert (torch.stack(draws).mean(0) - exact).norm() < 0.35 * exact.norm()
