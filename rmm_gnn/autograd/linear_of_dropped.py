"""A linear map of dropout of a tensor that is there anyway: keeps that tensor and a seed.

Backward drops out again.  Nothing is estimated, and nothing new is kept but the seed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.autograd.dropout import dropped_rows
from rmm_gnn.kernels.reference import accumulation_dtype

_TILE_BYTES = 1 << 22


@torch.library.custom_op("rmm_gnn::linear_of_dropped", mutates_args=())
def linear_of_dropped_op(
    x: Tensor,  # [B, N]
    source: Tensor,  # [B, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None,  # [M]
    p: float,
    seed: Tensor,
) -> Tensor:  # [B, M]
    """X W^T + b, where X is ``source`` after dropout with the mask of ``seed``."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight, bias)


@linear_of_dropped_op.register_fake
def _(x: Tensor, source: Tensor, weight: Tensor, bias: Tensor | None, p: float, seed: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("rmm_gnn::dropped_weight_grad", mutates_args=())
def dropped_weight_grad_op(grad_output: Tensor, source: Tensor, p: float, seed: Tensor) -> Tensor:
    """Y^T X with X made again from ``source``, some rows at a time."""
    dtype = accumulation_dtype(grad_output.dtype)
    total = grad_output.new_zeros(grad_output.shape[1], source.shape[1], dtype=dtype)
    height = max(1, _TILE_BYTES // (max(1, source.shape[1]) * dtype.itemsize))
    with torch.autocast(grad_output.device.type, enabled=False):
        for start, stop, rows in dropped_rows(source, p, seed, height):
            # Through the type in which forward read them, as the exact gradient would.
            total.addmm_(grad_output[start:stop].to(dtype).T, rows.to(grad_output.dtype).to(dtype))
    return total.to(grad_output.dtype)


@dropped_weight_grad_op.register_fake
def _(grad_output: Tensor, source: Tensor, p: float, seed: Tensor) -> Tensor:
    return grad_output.new_empty(grad_output.shape[1], source.shape[1])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, source, weight, bias, ctx.p, seed = inputs
    ctx.set_materialize_grads(False)
    needs_x, _, needs_weight = ctx.needs_input_grad[:3]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.save_for_backward(weight if needs_x else None, *((source, seed) if needs_weight else ()))


def _backward(ctx: Any, grad_output: Tensor | None) -> tuple[Tensor | None, ...]:
    refuse_double_backward("linear_of_dropped")
    grad_x = grad_weight = grad_bias = None
    if grad_output is not None:
        weight, *kept = ctx.saved_tensors
        if weight is not None:
            grad_x = grad_output @ weight
        if kept:
            grad_weight = torch.ops.rmm_gnn.dropped_weight_grad(grad_output, kept[0], ctx.p, kept[1])
        if ctx.needs_input_grad[3]:
            grad_bias = grad_output.sum(0).to(ctx.bias_dtype)
    return grad_x, None, grad_weight, grad_bias, None, None


linear_of_dropped_op.register_autograd(_backward, setup_context=_setup_context)
