r"""Root-mean-square normalisation that keeps its normalised input in a codec.

With :math:`\hat x = x / \sigma`, :math:`\sigma^2` the mean square of a row of C entries plus eps, and
:math:`g' = \gamma g`,

.. math::
    \partial\gamma = \sum_{rows} g \hat x, \qquad
    \partial x = \frac1\sigma \left( g' - \hat x \, \tfrac1C \sum g' \hat x \right)

What is read back is right on average and its entries are pairwise independent, so the gradient of gamma is unbiased.
The gradient of x is quadratic in what is kept: entry j of a row is off by :math:`-g'_j v_j / (\sigma C)` on average,
v_j the codec's variance there, as in layer normalisation.
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


@torch.library.custom_op("rmm_gnn::rms_norm", mutates_args=(), tags=_SEEDED)
def rms_norm_op(
    x: Tensor,  # [*, C...]
    normalized_shape: list[int],
    weight: Tensor | None,
    eps: float,
    codec: str,
    seed: Tensor,
    backend: str,
) -> tuple[Tensor, list[Tensor]]:
    """The output, as torch's elementary functions give it; 1/sigma of every row and the coded normalised input."""
    dtype, columns = accumulation_dtype(x.dtype), prod(normalized_shape)
    rows = x.reshape(-1, columns)
    gamma = None if weight is None else weight.reshape(-1).to(dtype)
    out = x.new_empty(x.shape)  # and not a view of what is filled below, which could not be changed in place
    out_rows = out.view(-1, columns)
    inv_rms = rows.new_empty(rows.shape[0], dtype=dtype)
    payload = get_codec(codec).empty(rows.shape[0], columns, x.dtype, x.device)
    for start, stop in row_tiles(rows.shape[0], columns, TILE_BYTES, dtype.itemsize):
        block = rows[start:stop].to(dtype, copy=True)
        scale = block.square().mean(1, keepdim=True).add_(eps).rsqrt_()
        block.mul_(scale)
        inv_rms[start:stop] = scale.squeeze(1)
        out_rows[start:stop] = block if gamma is None else block * gamma
        get_codec(codec).encode(block, payload, start, seed, backend=backend)
    return out, [inv_rms, *payload]


@rms_norm_op.register_fake
def _(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float, codec: str, seed: Tensor, backend: str
) -> tuple[Tensor, list[Tensor]]:
    columns = prod(normalized_shape)
    rows = x.numel() // columns
    payload = get_codec(codec).empty(rows, columns, x.dtype, x.device)
    return x.new_empty(x.shape), [x.new_empty(rows, dtype=accumulation_dtype(x.dtype)), *payload]


@torch.library.custom_op("rmm_gnn::rms_norm_backward", mutates_args=())
def rms_norm_backward_op(
    grad_output: Tensor,  # [*, C...]
    normalized_shape: list[int],
    weight: Tensor | None,
    kept: list[Tensor],
    codec: str,
    needs_x: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of x (empty where not needed) and gamma."""
    grads = grad_output.reshape(-1, prod(normalized_shape))
    grad_x, grad_weight = row_norm_backward(
        grads, weight, list(kept), codec, centred=False, needs_x=needs_x, backend=backend
    )
    return grad_x.view(grad_output.shape) if needs_x else grad_x, grad_weight


@rms_norm_backward_op.register_fake
def _(
    grad_output: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None,
    kept: list[Tensor],
    codec: str,
    needs_x: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    shape = grad_output.shape if needs_x else (0,)
    dtype = accumulation_dtype(grad_output.dtype)
    return grad_output.new_empty(shape), grad_output.new_empty(prod(normalized_shape), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    x, normalized_shape, weight, _, codec, _, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.normalized_shape, ctx.codec, ctx.backend, ctx.dtype = normalized_shape, codec, backend, x.dtype
    ctx.weight_dtype = None if weight is None else weight.dtype
    ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, *output[1])


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward("rms_norm")
    if grad_output is None:
        return (None,) * 7
    weight, *kept = ctx.saved_tensors
    needs_x, _, needs_weight = ctx.needs_input_grad[:3]
    grad_x, grad_weight = torch.ops.rmm_gnn.rms_norm_backward(
        grad_output, ctx.normalized_shape, weight, kept, ctx.codec, needs_x, ctx.backend
    )
    return (
        grad_x.to(ctx.dtype) if needs_x else None,
        None,
        grad_weight.to(ctx.weight_dtype).view(ctx.normalized_shape) if needs_weight else None,
        *(None,) * 4,
    )


rms_norm_op.register_autograd(_backward, setup_context=_setup_context)
