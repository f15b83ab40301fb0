"""Recomputation sees the context that the first pass saw, or an error says so; the same under torch.compile."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Dropout, Linear, Module, ReLU, Sequential
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm
from tests.nn.recording import assert_unbiased, kept_storages, saved_tensors

ROWS, WIDTH = 64, 8
CONFIG = RMMConfig(rate=0.25)
VARIANTS = pytest.mark.parametrize("use_reentrant", [True, False], ids=["reentrant", "non-reentrant"])
BACKWARD = pytest.mark.parametrize("inside", [True, False], ids=["backward inside", "backward outside"])
REFUSED = pytest.raises(RuntimeError, match="compress_activations must be entered inside a checkpointed function")


class Block(Module):
    """Everything that draws, and x behind masks: where a gradient arrives shows which entries were kept."""

    def __init__(self, linear: Module | None = None) -> None:
        super().__init__()
        self.linear = Linear(WIDTH, WIDTH) if linear is None else linear
        self.norm, self.dropout, self.act = torch.nn.BatchNorm1d(WIDTH), Dropout(0.5), torch.nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        noise = 0 * (self.act(self.norm(self.linear(F.dropout(x, 0.3)))) + F.relu(x) @ self.linear.weight)
        return self.dropout(x) + noise


class Inside(Module):
    """A block that enters a context of its own."""

    def __init__(self, block: Module, mode: compress_activations | None = None) -> None:
        super().__init__()
        self.block, self.mode = block, mode

    def forward(self, x: Tensor) -> Tensor:
        with self.mode or compress_activations(CONFIG):
            return self.block(x)


def an_input() -> Tensor:
    return torch.rand(ROWS, WIDTH).add_(1).requires_grad_()


def assert_one_mask(run, context=contextlib.nullcontext, *, inside: bool = False) -> None:
    """The mask of the output is that of the gradient, and another one at every step."""
    masks = []
    for _ in range(3):
        x = an_input()
        with context():
            out = run(x)
            if inside:
                out.sum().backward()
        if not inside:
            out.sum().backward()
        assert torch.equal(out != 0, x.grad != 0)
        masks.append(out != 0)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


@VARIANTS
@BACKWARD
def test_entered_around_the_checkpoint_raises(use_reentrant, inside):
    for block in (Block(), convert_to_rmm(Block(), CONFIG), F.relu, functools.partial(F.dropout, p=0.5)):
        with REFUSED, compress_activations(CONFIG):
            out = checkpoint(block, an_input(), use_reentrant=use_reentrant)
            if inside:
                out.sum().backward()


@VARIANTS
@BACKWARD
def test_entered_inside_the_checkpointed_function(use_reentrant, inside):
    run = functools.partial(checkpoint, Inside(Block()), use_reentrant=use_reentrant)
    assert_one_mask(run, inside=inside)
    assert_one_mask(run, lambda: compress_activations(CONFIG), inside=inside)


@BACKWARD
def test_entered_through_context_fn(inside):
    def modes() -> tuple[compress_activations, compress_activations]:
        return compress_activations(CONFIG), compress_activations(CONFIG)

    run = functools.partial(checkpoint, Block(), use_reentrant=False, context_fn=modes)
    assert_one_mask(run, inside=inside)
    assert_one_mask(run, lambda: compress_activations(CONFIG), inside=inside)


@VARIANTS
def test_a_block_of_before_is_recomputed_as_before(use_reentrant):
    x = an_input()
    out = checkpoint(Block(), x, use_reentrant=use_reentrant)
    with compress_activations(CONFIG):
        torch.autograd.backward(out.sum())
    assert torch.equal(out != 0, x.grad != 0)


@VARIANTS
def test_weights_that_are_computed_do_not_shift_the_masks(use_reentrant):
    """The reentrant variant's first pass runs without grad mode, where such a weight needs no gradient."""
    block = Inside(Block(torch.nn.utils.parametrizations.weight_norm(Linear(WIDTH, WIDTH))))
    assert_one_mask(functools.partial(checkpoint, block, use_reentrant=use_reentrant))


@VARIANTS
def test_weights_that_are_arguments_do_not_shift_the_masks(use_reentrant):
    """The reentrant variant hands plain tensors to its second pass in place of parameters."""
    weight = torch.nn.Parameter(torch.randn(WIDTH, WIDTH))

    def block(x: Tensor, w: Tensor) -> Tensor:
        with compress_activations(CONFIG):
            return 0 * (x @ w) + F.dropout(x, 0.5)

    assert_one_mask(lambda x: checkpoint(block, x, weight, use_reentrant=use_reentrant))


@VARIANTS
def test_gradients_through_a_checkpoint_are_unbiased(use_reentrant):
    model = Sequential(Linear(WIDTH, WIDTH), ReLU(), Linear(WIDTH, 2))
    block, x, seen = Inside(model), torch.rand(ROWS, WIDTH, requires_grad=True), torch.rand(ROWS, 2)

    def grad(call) -> Tensor:
        model.zero_grad()
        (call() * seen).sum().backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    exact = grad(lambda: model(x))
    assert_unbiased(lambda: grad(lambda: checkpoint(block, x, use_reentrant=use_reentrant)), exact, draws=60)


@VARIANTS
def test_the_same_seed_replays_a_checkpointed_block(use_reentrant):
    block, grads = Inside(Block()), []
    for _ in range(2):
        torch.manual_seed(5)
        x = an_input()
        checkpoint(block, x, use_reentrant=use_reentrant).square().sum().backward()
        grads.append(torch.cat([x.grad.flatten(), block.block.norm.weight.grad]))
        block.zero_grad()
    assert torch.equal(*grads)


@VARIANTS
def test_checkpoint_sequential(use_reentrant):
    blocks = [Inside(Block()) for _ in range(4)]
    run = functools.partial(checkpoint_sequential, Sequential(*blocks), 2, use_reentrant=use_reentrant)
    x = an_input()
    out = run(input=x)
    out.sum().backward()
    assert torch.equal(out != 0, x.grad != 0)
    model = Sequential(*[Block() for _ in range(4)])
    with REFUSED, compress_activations(CONFIG):
        checkpoint_sequential(model, 2, an_input(), use_reentrant=use_reentrant)


@VARIANTS
@pytest.mark.parametrize("outer", [True, False], ids=["outer reentrant", "outer non-reentrant"])
def test_checkpoints_within_checkpoints(use_reentrant, outer):
    def nested(block: Module):
        return functools.partial(checkpoint, block, use_reentrant=use_reentrant)

    def refused(x: Tensor) -> Tensor:
        with compress_activations(CONFIG):
            return nested(Block())(x)

    block = Inside(Block())
    assert_one_mask(lambda x: checkpoint(nested(block), x, use_reentrant=outer))
    with REFUSED:
        checkpoint(refused, an_input(), use_reentrant=outer)


@VARIANTS
def test_one_mode_for_all_blocks_still_refuses_what_it_must(use_reentrant):
    mode = compress_activations(CONFIG)
    block, plain = Inside(Block(), mode), Block()
    assert_one_mask(functools.partial(checkpoint, block, use_reentrant=use_reentrant), lambda: mode)
    with REFUSED, mode:
        checkpoint(block, an_input(), use_reentrant=use_reentrant)
        checkpoint(plain, an_input(), use_reentrant=use_reentrant)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("where", ["around", "inside"])
def test_compiled_models_keep_and_estimate_the_same(backend, where):
    torch._dynamo.reset()
    model, x, seen = Sequential(Linear(WIDTH, WIDTH), ReLU(), Linear(WIDTH, 2)), torch.rand(256, WIDTH), torch.rand(2)
    exact = torch.autograd.grad((model(x) * seen).sum(), list(model.parameters()))
    compiled = torch.compile(
        model if where == "around" else Inside(model), backend=backend, fullgraph=where == "around"
    )

    def run() -> Tensor:
        with compress_activations(CONFIG) if where == "around" else contextlib.nullcontext():
            return compiled(x)

    with saved_tensors() as saved:
        assert torch.equal(run(), model(x))
    masks = [tensor for tensor in saved if tensor.dtype == torch.uint8]
    with saved_tensors() as saved:
        out = run()
    kept = sum(kept_storages(saved, besides=model.parameters()).values())
    assert kept == 2 * CONFIG.saved_bytes(256, WIDTH) + 256 * WIDTH // 8 and len(masks) == 1
    del out

    def grad() -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad((run() * seen).sum(), list(model.parameters()))])

    assert_unbiased(grad, torch.cat([g.flatten() for g in exact]), draws=50)


@pytest.mark.parametrize("where", ["around", "inside"])
def test_compiled_dropout_has_one_mask(where):
    torch._dynamo.reset()
    block = Block()
    compiled = torch.compile(block if where == "around" else Inside(block), backend="aot_eager")
    context = (lambda: compress_activations(CONFIG)) if where == "around" else contextlib.nullcontext
    assert_one_mask(compiled, context)


@VARIANTS
def test_compile_and_checkpoint_together(use_reentrant):
    torch._dynamo.reset()
    traced = torch.compile(functools.partial(F.dropout, p=0.5), backend="aot_eager")
    with REFUSED, compress_activations(CONFIG):
        checkpoint(traced, an_input(), use_reentrant=use_reentrant)
    run = torch.compile(lambda x: checkpoint(Inside(Block()), x, use_reentrant=use_reentrant), backend="aot_eager")
    assert_one_mask(run)


@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize("made", ["inside", "before"])
def test_a_compiled_function_that_enters_returns_what_the_block_returns(made, fullgraph):
    """After a graph break in ``__enter__``, dynamo returned ``F.linear(x, weight)`` here, without what follows."""
    mode = compress_activations(CONFIG)

    def loss(x, weight):
        with compress_activations(CONFIG) if made == "inside" else mode:
            return F.linear(x, weight).square().sum()

    torch._dynamo.reset()
    x, weight = torch.randn(64, 8), torch.nn.Parameter(torch.randn(8, 8))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=fullgraph)(x, weight)
    torch.testing.assert_close(compiled, loss(x, weight))
    compiled.backward()
    assert weight.grad is not None
