r"""Layer normalisation that keeps its normalised input in a codec.

With :math:`\hat x` the normalised input of a row of C entries and :math:`g' = \gamma g`,

.. math::
    \partial\gamma = \sum_{rows} g \hat x, \qquad \partial\beta = \sum_{rows} g, \qquad
    \partial x = \frac1\sigma \left( g' - \tfrac1C \sum g' - \hat x \, \tfrac1C \sum g' \hat x \right)

What is read back is right on average and its entries are pairwise independent, so the gradient of gamma is unbiased.
The gradient of x is quadratic in what is kept: entry j of a row is off by :math:`-g'_j v_j / (\sigma C)` on average,
v_j the codec's variance there.  With INT2, :math:`v_j \le s^2/4` for the step s: the narrower the rows, the more bits
they need.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.autograd.row_norm import TILE_BYTES, row_norm_backward
from rmm_gnn.codecs import get_codec, row_tiles
from rmm_gnn.kernels.reference import accumulation_dtype

_SEEDED = (torch.Tag.nondeterministic_seeded,)


@torch.library.custom_op("rmm_gnn::layer_norm", mutates_args=(), tags=_SEEDED)
def layer_norm_op(
    x: Tensor,  # [*, C...]
    normalized_shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    codec: str,
    keep_input: bool,
    seed: Tensor,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    """Torch's output; 1/sigma of every row and, with ``keep_input``, the coded normalised input."""
    out, mean, inv_std = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)
    dtype, columns = accumulation_dtype(x.dtype), prod(normalized_shape)
    kept = [inv_std.reshape(-1).to(dtype, copy=True)]
    if keep_input:
        rows = x.reshape(-1, columns)
        mean = mean.reshape(-1, 1).to(dtype)
        payload = get_codec(codec).empty(rows.shape[0], columns, x.dtype, x.device)
        for start, stop in row_tiles(rows.shape[0], columns, TILE_BYTES, dtype.itemsize):
            block = rows[start:stop].to(dtype).sub(mean[start:stop]).mul_(kept[0][start:stop].unsqueeze(1))
            get_codec(codec).encode(block, payload, start, seed, backend=backend)
        kept += payload
    return out, kept


@layer_norm_op.register_fake
def _(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    codec: str,
    keep_input: bool,
    seed: Tensor,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    out = torch.native_layer_norm(x, normalized_shape, weight, bias, eps)[0]
    columns = prod(normalized_shape)
    rows = x.numel() // columns
    kept = [x.new_empty(rows, dtype=accumulation_dtype(x.dtype))]
    if keep_input:
        kept += get_codec(codec).empty(rows, columns, x.dtype, x.device)
    return out, kept


@torch.library.custom_op("rmm_gnn::layer_norm_backward", mutates_args=())
def layer_norm_backward_op(
    grad_output: Tensor,  # [*, C...]
    normalized_shape: list[int],
    weight: Tensor | None,
    kept: list[Tensor],
    codec: str,
    needs_x: bool,
    needs_bias: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x and beta (empty where not needed) and gamma (0 where the input was not kept)."""
    columns = prod(normalized_shape)
    dtype, grads = accumulation_dtype(grad_output.dtype), grad_output.reshape(-1, columns)
    # Tiles bound what a low type takes for sums in the accumulation type.
    grad_bias = grads.new_zeros(columns if needs_bias else 0, dtype=dtype)
    if needs_bias:
        for start, stop in row_tiles(grads.shape[0], columns, TILE_BYTES, dtype.itemsize):
            grad_bias += grads[start:stop].to(dtype).sum(0)
    if len(kept) == 1:  # the input was not kept
        return grads.new_empty(0), grads.new_zeros(columns, dtype=dtype), grad_bias
    grad_x, grad_weight = row_norm_backward(
        grads, weight, list(kept), codec, centred=True, needs_x=needs_x, backend=backend
    )
    return grad_x.view(grad_output.shape) if needs_x else grad_x, grad_weight, grad_bias


@layer_norm_backward_op.register_fake
def _(
    grad_output: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None,
    kept: list[Tensor],
    codec: str,
    needs_x: bool,
    needs_bias: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    columns = prod(normalized_shape)
    dtype = accumulation_dtype(grad_output.dtype)
    shape = grad_output.shape if needs_x else (0,)
    return (
        grad_output.new_empty(shape),
        grad_output.new_empty(columns, dtype=dtype),
        grad_output.new_empty(columns if needs_bias else 0, dtype=dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    x, normalized_shape, weight, bias, _, codec, _, _, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.normalized_shape, ctx.codec, ctx.backend, ctx.dtype = normalized_shape, codec, backend, x.dtype
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (weight, bias)]
    ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, *output[1])


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward("layer_norm")
    if grad_output is None:
        return (None,) * 9
    weight, *kept = ctx.saved_tensors
    needs_x, _, needs_weight, needs_bias = ctx.needs_input_grad[:4]
    grad_x, grad_weight, grad_bias = torch.ops.rmm_gnn.layer_norm_backward(
        grad_output, ctx.normalized_shape, weight, kept, ctx.codec, needs_x, needs_bias, ctx.backend
    )
    return (
        grad_x.to(ctx.dtype) if needs_x else None,
        None,
        grad_weight.to(ctx.dtypes[0]).view(ctx.normalized_shape) if needs_weight else None,
        grad_bias.to(ctx.dtypes[1]).view(ctx.normalized_shape) if needs_bias else None,
        *(None,) * 5,
    )


layer_norm_op.register_autograd(_backward, setup_context=_setup_context)
