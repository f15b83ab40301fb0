"""A linear map of an input that several layers share: exact output, the input kept once, in a codec."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.codecs import get_codec, row_tiles
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.sharing import mark_read

_TILE_BYTES = 1 << 22


@torch.library.custom_op("rmm_gnn::encode", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def encode_op(x: Tensor, codec: str, seed: Tensor) -> list[Tensor]:
    """The code of ``x`` [B, N]."""
    return get_codec(codec).encode_matrix(x, seed)


@encode_op.register_fake
def _(x: Tensor, codec: str, seed: Tensor) -> list[Tensor]:
    return get_codec(codec).empty(x.shape[0], x.shape[1], x.dtype, x.device)


@torch.library.custom_op("rmm_gnn::coded_linear", mutates_args=())
def coded_linear_op(
    x: Tensor,  # [B, N]
    weight: Tensor,  # [M, N]
    payload: list[Tensor],
    codec: str,
    scale: float,
) -> Tensor:  # [B, M]
    """X W^T times ``scale``; backward reads X from ``payload``."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(weight.dtype), scale * weight)


@coded_linear_op.register_fake
def _(x: Tensor, weight: Tensor, payload: list[Tensor], codec: str, scale: float) -> Tensor:
    return weight.new_empty(x.shape[0], weight.shape[0])


def product_with_code(grad_output: Tensor, payload: list[Tensor], num_columns: int, codec: str) -> Tensor:  # [M, N]
    """Return Y^T X in the accumulation type, X read back tile by tile; under "fp32" it is ``payload`` itself."""
    dtype = accumulation_dtype(grad_output.dtype)
    if codec == "fp32" and grad_output.dtype == payload[0].dtype == dtype:
        return grad_output.T @ payload[0]
    total = grad_output.new_zeros(grad_output.shape[1], num_columns, dtype=dtype)
    for start, stop in row_tiles(grad_output.shape[0], num_columns, _TILE_BYTES, dtype.itemsize):
        rows = get_codec(codec).decode(payload, start, stop, num_columns, dtype)
        total.addmm_(grad_output[start:stop].to(dtype).T, rows)
    return total


@torch.library.custom_op("rmm_gnn::coded_weight_grad", mutates_args=())
def coded_weight_grad_op(grad_output: Tensor, payload: list[Tensor], num_columns: int, codec: str) -> Tensor:
    """Y^T X with X as it is read back."""
    with torch.autocast(grad_output.device.type, enabled=False):
        return product_with_code(grad_output, list(payload), num_columns, codec).to(grad_output.dtype)


@coded_weight_grad_op.register_fake
def _(grad_output: Tensor, payload: list[Tensor], num_columns: int, codec: str) -> Tensor:
    return grad_output.new_empty(grad_output.shape[1], num_columns)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, payload, codec, ctx.scale = inputs
    ctx.codec, ctx.num_columns, ctx.dtype, ctx.num_kept = codec, x.shape[1], x.dtype, len(payload)
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(weight if needs_x else None, *(payload if needs_weight else []))


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    refuse_double_backward("shared_input_linear")
    weight, *payload = ctx.saved_tensors
    mark_read(payload)
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_x = (grad_output @ (ctx.scale * weight)).to(ctx.dtype)
    if ctx.needs_input_grad[1]:
        grad_weight = torch.ops.rmm_gnn.coded_weight_grad(grad_output, payload, ctx.num_columns, ctx.codec)
        grad_weight = grad_weight * ctx.scale
    return grad_x, grad_weight, [None] * ctx.num_kept, None, None


coded_linear_op.register_autograd(_backward, setup_context=_setup_context)
