"""Dropout that keeps no mask, and ReLU with dropout that keeps one bit for both."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.bit_masks import TILE, mask_bytes, tiles, write_bits
from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.seeding import Stream, hash_index, mix32

_SEEDED = (torch.Tag.nondeterministic_seeded,)


def keep_masks(num_entries: int, p: float, seed: Tensor) -> Any:
    """Yield (tile, bool mask) over a flat tensor: True with probability 1 - p, to within 2^-32, independently.

    Entry i of tile t is kept if mix32(a_t xor b_i) >= p 2^32, with a and b hashed from the seed: one keyed round for an
    entry, the same whatever the tensor's shape.
    """
    threshold = round(p * 2**32)
    count = (num_entries + TILE - 1) // TILE
    first = hash_index(seed, Stream.DROPOUT, torch.arange(count, device=seed.device))
    lanes = hash_index(seed, Stream.DROPOUT_LANES, torch.arange(min(TILE, num_entries), device=seed.device))
    words = torch.empty_like(lanes)
    for number, tile in enumerate(tiles(num_entries)):
        part = words[: tile.entries.stop - tile.entries.start]
        torch.bitwise_xor(lanes[: part.shape[0]], first[number], out=part)
        yield tile, mix32(part) >= threshold


@torch.library.custom_op("rmm_gnn::dropout", mutates_args=(), tags=_SEEDED)
def dropout_op(x: Tensor, p: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Dropout of ``x``, and the seed that the mask is recomputed from."""
    # The seed leaves with the output: a checkpoint policy that keeps the one and draws the other anew cannot part them.
    return apply_dropout(x, p, seed), seed.clone()


@dropout_op.register_fake
def _(x: Tensor, p: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(seed)


@torch.library.custom_op("rmm_gnn::dropout_backward", mutates_args=())
def dropout_backward_op(grad_output: Tensor, p: float, seed: Tensor) -> Tensor:
    """The same mask and scale on ``grad_output``."""
    return apply_dropout(grad_output, p, seed)


@dropout_backward_op.register_fake
def _(grad_output: Tensor, p: float, seed: Tensor) -> Tensor:
    return torch.empty_like(grad_output, memory_format=torch.contiguous_format)


def apply_dropout(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Return x times 1 / (1 - p) where the seed's mask keeps an entry, x times 0 elsewhere, as torch does."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    source, target = x.reshape(-1), out.view(-1)
    for tile, mask in keep_masks(x.numel(), p, seed):
        torch.mul(source[tile.entries], mask.to(x.dtype).div_(1 - p), out=target[tile.entries])
    return out


def _setup_dropout(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.p = inputs[1]
    ctx.save_for_backward(output[1])


def _dropout_backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
    refuse_double_backward("dropout")
    if grad_output is None:
        return None, None, None
    (seed,) = ctx.saved_tensors
    return torch.ops.rmm_gnn.dropout_backward(grad_output, ctx.p, seed), None, None


dropout_op.register_autograd(_dropout_backward, setup_context=_setup_dropout)


@torch.library.custom_op("rmm_gnn::relu_dropout", mutates_args=(), tags=_SEEDED)
def relu_dropout_op(x: Tensor, p: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Dropout of ReLU of ``x``, and one bit for every entry: whether the gradient passes both."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    bits = torch.empty(mask_bytes(x.numel()), dtype=torch.uint8, device=x.device)
    source, target = x.reshape(-1), out.view(-1)
    for tile, mask in keep_masks(x.numel(), p, seed):
        part = source[tile.entries]
        torch.mul(F.relu(part), mask.to(x.dtype).div_(1 - p), out=target[tile.entries])
        write_bits((part <= 0).logical_not_().logical_and_(mask), bits, tile)
    return out, bits


@relu_dropout_op.register_fake
def _(x: Tensor, p: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty(mask_bytes(x.numel()), dtype=torch.uint8)


def _setup_relu_dropout(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.divisor = 1 - inputs[1]
    ctx.save_for_backward(output[1])


def _relu_dropout_backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
    refuse_double_backward("relu_dropout")
    if grad_output is None:
        return None, None, None
    (bits,) = ctx.saved_tensors
    return torch.ops.rmm_gnn.masked_grad(grad_output, bits, ctx.divisor, 0.0), None, None


relu_dropout_op.register_autograd(_relu_dropout_backward, setup_context=_setup_relu_dropout)
