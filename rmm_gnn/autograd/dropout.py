"""Dropout that keeps no mask, and ReLU with dropout that keeps one bit for both."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.bit_masks import TILE, Tile, mask_bytes, tiles, write_bits
from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.kernels import implementation
from rmm_gnn.seeding import Stream, hash_index, mix32

_SEEDED = (torch.Tag.nondeterministic_seeded,)


class _MaskHash:
    """The mask of a flat tensor: entry i of tile t is kept if mix32(a_t xor b_i) >= p 2^32, a and b hashed of the seed.

    That is one keyed round for an entry, and the same mask whatever the tensor's shape.
    """

    def __init__(self, num_entries: int, p: float, seed: Tensor) -> None:
        self._threshold = round(p * 2**32)
        count = (num_entries + TILE - 1) // TILE
        self._first = hash_index(seed, Stream.DROPOUT, torch.arange(count, device=seed.device))
        self._lanes = hash_index(seed, Stream.DROPOUT_LANES, torch.arange(min(TILE, num_entries), device=seed.device))
        self._words = torch.empty_like(self._lanes)

    def within_tile(self, start: int, stop: int) -> Tensor:
        """Return the bool mask of entries [start, stop), which lie in one tile; it holds until the next call."""
        tile, first = divmod(start, TILE)
        part = self._words[: stop - start]
        torch.bitwise_xor(self._lanes[first : first + stop - start], self._first[tile], out=part)
        return mix32(part) >= self._threshold


def keep_masks(num_entries: int, p: float, seed: Tensor) -> Iterator[tuple[Tile, Tensor]]:
    """Yield (tile, bool mask) over a flat tensor: True with probability 1 - p, to within 2^-32, independently."""
    masks = _MaskHash(num_entries, p, seed)
    for tile in tiles(num_entries):
        yield tile, masks.within_tile(tile.entries.start, tile.entries.stop)


def dropped_rows(x: Tensor, p: float, seed: Tensor, height: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the rows of ``apply_dropout(x, p, seed)``, x [B, N], ``height`` at a time, as ``(start, stop, rows)``."""
    kernels, columns = implementation("activations", "auto", x), x.shape[1]
    masks = _MaskHash(x.numel() if kernels is None else 0, p, seed)
    for start in range(0, x.shape[0], height):
        stop = min(start + height, x.shape[0])
        source = x[start:stop].reshape(-1)
        if kernels is not None:
            yield start, stop, kernels.dropout(source, p, seed, start * columns).view(-1, columns)
            continue
        rows = torch.empty_like(source)
        first, last = start * columns, stop * columns
        cuts = [first, *range((first // TILE + 1) * TILE, last, TILE), last]
        for begin, end in pairwise(cuts):
            part = slice(begin - first, end - first)
            torch.mul(source[part], masks.within_tile(begin, end).to(x.dtype).div_(1 - p), out=rows[part])
        yield start, stop, rows.view(-1, columns)


@torch.library.custom_op("rmm_gnn::dropout", mutates_args=(), tags=_SEEDED)
def dropout_op(x: Tensor, p: float, seed: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Dropout of ``x``, and the seed that the mask is recomputed from."""
    # The seed leaves with the output: a checkpoint policy that keeps the one and draws the other anew cannot part them.
    return apply_dropout(x, p, seed, backend), seed.clone()


@dropout_op.register_fake
def _(x: Tensor, p: float, seed: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(seed)


@torch.library.custom_op("rmm_gnn::dropout_backward", mutates_args=())
def dropout_backward_op(grad_output: Tensor, p: float, seed: Tensor, backend: str) -> Tensor:
    """The same mask and scale on ``grad_output``."""
    return apply_dropout(grad_output, p, seed, backend)


@dropout_backward_op.register_fake
def _(grad_output: Tensor, p: float, seed: Tensor, backend: str) -> Tensor:
    return torch.empty_like(grad_output, memory_format=torch.contiguous_format)


def apply_dropout(x: Tensor, p: float, seed: Tensor, backend: str = "auto") -> Tensor:
    """Return x times 1 / (1 - p) where the seed's mask keeps an entry, x times 0 elsewhere, as torch does."""
    kernels = implementation("activations", backend, x)
    if kernels is not None:
        found: Tensor = kernels.dropout(x, p, seed)
        return found
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    source, target = x.reshape(-1), out.view(-1)
    for tile, mask in keep_masks(x.numel(), p, seed):
        torch.mul(source[tile.entries], mask.to(x.dtype).div_(1 - p), out=target[tile.entries])
    return out


def _setup_dropout(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    _, ctx.p, _, ctx.backend = inputs
    ctx.save_for_backward(output[1])


def _dropout_backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, None, None, None]:
    refuse_double_backward("dropout")
    if grad_output is None:
        return None, None, None, None
    (seed,) = ctx.saved_tensors
    return torch.ops.rmm_gnn.dropout_backward(grad_output, ctx.p, seed, ctx.backend), None, None, None


dropout_op.register_autograd(_dropout_backward, setup_context=_setup_dropout)


@torch.library.custom_op("rmm_gnn::relu_dropout", mutates_args=(), tags=_SEEDED)
def relu_dropout_op(x: Tensor, p: float, seed: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """Dropout of ReLU of ``x``, and one bit for every entry: whether the gradient passes both."""
    kernels = implementation("activations", backend, x)
    if kernels is not None:
        out, bits = kernels.relu_dropout(x, p, seed)
        return out, bits
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    bits = torch.empty(mask_bytes(x.numel()), dtype=torch.uint8, device=x.device)
    source, target = x.reshape(-1), out.view(-1)
    for tile, mask in keep_masks(x.numel(), p, seed):
        part = source[tile.entries]
        torch.mul(F.relu(part), mask.to(x.dtype).div_(1 - p), out=target[tile.entries])
        write_bits((part <= 0).logical_not_().logical_and_(mask), bits, tile)
    return out, bits


@relu_dropout_op.register_fake
def _(x: Tensor, p: float, seed: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    return out, x.new_empty(mask_bytes(x.numel()), dtype=torch.uint8)


def _setup_relu_dropout(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.divisor, ctx.backend = 1 - inputs[1], inputs[3]
    ctx.save_for_backward(output[1])


def _relu_dropout_backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, None, None, None]:
    refuse_double_backward("relu_dropout")
    if grad_output is None:
        return None, None, None, None
    (bits,) = ctx.saved_tensors
    return torch.ops.rmm_gnn.masked_grad(grad_output, bits, ctx.divisor, 0.0, ctx.backend), None, None, None


relu_dropout_op.register_autograd(_relu_dropout_backward, setup_context=_setup_relu_dropout)
