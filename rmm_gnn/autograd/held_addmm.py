"""``beta input + alpha mat1 mat2`` where ``mat1`` is, or was made of, a tensor that is there anyway.

That tensor is kept itself, and a seed if it was dropped out; backward casts and drops out again.  Nothing is estimated,
and nothing new is kept but the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.autograd.dropout import dropped_rows
from rmm_gnn.kernels.reference import accumulation_dtype

_TILE_BYTES = 1 << 22


@torch.library.custom_op("rmm_gnn::held_addmm", mutates_args=())
def held_addmm_op(
    input: Tensor | None,  # broadcasts to [B, M]
    mat1: Tensor,  # [B, N]
    source: Tensor,  # [*, N]
    mat2: Tensor,  # [N, M]
    beta: float,
    alpha: float,
    p: float,
    seed: Tensor | None,
) -> Tensor:  # [B, M]
    """Torch's output; ``mat1`` is ``source``, after dropout with the mask of ``seed`` if there is one, cast.

    Without an ``input`` it is the product alone.  ``source`` comes, and is kept, in the shape that its owner gave it: a
    flattened one might be a copy.
    """
    with torch.autocast(mat1.device.type, enabled=False):
        return mat1 @ mat2 if input is None else torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha)


@held_addmm_op.register_fake
def _(
    input: Tensor | None,
    mat1: Tensor,
    source: Tensor,
    mat2: Tensor,
    beta: float,
    alpha: float,
    p: float,
    seed: Tensor | None,
) -> Tensor:
    return mat1.new_empty(mat1.shape[0], mat2.shape[1])


@torch.library.custom_op("rmm_gnn::held_weight_grad", mutates_args=())
def held_weight_grad_op(grad_output: Tensor, source: Tensor, p: float, seed: Tensor | None) -> Tensor:
    """Y^T X with X made again from ``source`` [*, N], some rows at a time."""
    source = source.reshape(-1, source.shape[-1])
    dtype = accumulation_dtype(grad_output.dtype)
    total = grad_output.new_zeros(grad_output.shape[1], source.shape[1], dtype=dtype)
    height = max(1, _TILE_BYTES // (max(1, source.shape[1]) * dtype.itemsize))
    with torch.autocast(grad_output.device.type, enabled=False):
        for start, stop, rows in _rows(source, p, seed, height):
            # Through the type in which forward read them, as the exact gradient would.
            total.addmm_(grad_output[start:stop].to(dtype).T, rows.to(grad_output.dtype).to(dtype))
    return total.to(grad_output.dtype)


@held_weight_grad_op.register_fake
def _(grad_output: Tensor, source: Tensor, p: float, seed: Tensor | None) -> Tensor:
    return grad_output.new_empty(grad_output.shape[1], source.shape[-1])


def _rows(source: Tensor, p: float, seed: Tensor | None, height: int) -> Iterator[tuple[int, int, Tensor]]:
    if seed is not None:
        yield from dropped_rows(source, p, seed, height)
        return
    for start in range(0, source.shape[0], height):
        stop = min(start + height, source.shape[0])
        yield start, stop, source[start:stop]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, _, source, mat2, ctx.beta, ctx.alpha, ctx.p, seed = inputs
    ctx.set_materialize_grads(False)
    ctx.input_shape = None if input is None else input.shape
    _, needs_mat1, _, needs_mat2 = ctx.needs_input_grad[:4]
    ctx.save_for_backward(mat2 if needs_mat1 else None, *((source, seed) if needs_mat2 else ()))


def _backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_double_backward("A product of a held input")
    grad_input = grad_mat1 = grad_mat2 = None
    if grad_output is not None:
        mat2, *kept = ctx.saved_tensors
        if ctx.needs_input_grad[0]:
            grad_input = _times(ctx.beta, grad_output).sum_to_size(ctx.input_shape)
        if mat2 is not None:
            grad_mat1 = _times(ctx.alpha, grad_output @ mat2.t())
        if kept:
            source, seed = kept
            grad_mat2 = _times(ctx.alpha, torch.ops.rmm_gnn.held_weight_grad(grad_output, source, ctx.p, seed).t())
    return grad_input, grad_mat1, None, grad_mat2, None, None, None, None


def _times(factor: float, tensor: Tensor) -> Tensor:
    return tensor if factor == 1.0 else tensor * factor


held_addmm_op.register_autograd(_backward, setup_context=_setup_context)
