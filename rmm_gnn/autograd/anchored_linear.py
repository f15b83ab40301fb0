"""Two products of a GCN2 convolution as one operator: the sketch of one input is anchored at the other."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.anchor import fit_anchor
from rmm_gnn.autograd.coded_linear import product_with_code
from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.codecs import get_codec
from rmm_gnn.compression import CompressedActivation, compress, compress_like, weight_grad
from rmm_gnn.config import RMMConfig
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.sharing import mark_read

_SEEDED = (torch.Tag.nondeterministic_seeded,)


@torch.library.custom_op("rmm_gnn::anchored_linear", mutates_args=(), tags=_SEEDED)
def anchored_linear_op(
    x: Tensor,  # [B, N]
    weight: Tensor,  # [M, N]
    x_0: Tensor,  # [B, N]
    weight_0: Tensor | None,  # [M, N]
    payload: list[Tensor],
    codec: str,
    scale: float,
    seed: Tensor,
    config_spec: str,
) -> tuple[Tensor, list[Tensor]]:
    """X W^T + scale X_0 W_0^T; the seed, the coefficients of the fit, and the compressed rest of X.

    ``payload`` is the code of x_0 that backward reads; empty where it reads x_0 itself.
    """
    config = RMMConfig.from_spec(config_spec)
    with torch.autocast(x.device.type, enabled=False):
        out = F.linear(x, weight)
        if weight_0 is not None:
            out.addmm_(x_0.to(x.dtype), (scale * weight_0).to(x.dtype).T)
        # Rounding to nearest would bias the term that is added back; the fit on what is read back has none to lose.
        # Random rounding adds less noise there, where it is averaged over all rows, than it would in the sketch.
        rounded = bool(payload) and not get_codec(codec).rounds_at_random
        anchor = fit_anchor(
            x, payload[0] if rounded else x_0, center=config.center, workspace_bytes=config.workspace_bytes
        )
        return out, [seed.clone(), anchor.coefficients, *compress(x, config, seed, anchor=anchor).to_list()]


@anchored_linear_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    x_0: Tensor,
    weight_0: Tensor | None,
    payload: list[Tensor],
    codec: str,
    scale: float,
    seed: Tensor,
    config_spec: str,
) -> tuple[Tensor, list[Tensor]]:
    coefficients = x.new_empty(x_0.shape[1], x.shape[1], dtype=accumulation_dtype(x.dtype))
    compressed = compress_like(x, RMMConfig.from_spec(config_spec)).to_list()
    return x.new_empty(x.shape[0], weight.shape[0]), [torch.empty_like(seed), coefficients, *compressed]


@torch.library.custom_op("rmm_gnn::anchored_weight_grads", mutates_args=(), tags=_SEEDED)
def anchored_weight_grads_op(
    grad_output: Tensor,  # [B, M]
    kept: list[Tensor],
    kept_x_0: list[Tensor],
    codec: str,
    num_columns: int,
    config_spec: str,
) -> tuple[Tensor, Tensor]:
    """The estimate of Y^T X, and Y^T X_0 in the accumulation type, which is formed once for both."""
    config = RMMConfig.from_spec(config_spec)
    seed, coefficients, *compressed = kept
    with torch.autocast(grad_output.device.type, enabled=False):
        product = product_with_code(grad_output, list(kept_x_0), num_columns, codec)
        estimate, _ = weight_grad(
            grad_output,
            CompressedActivation.from_list(compressed, config),
            config,
            seed,
            num_columns=num_columns,
            dtype=grad_output.dtype,
            exact_term=product @ coefficients,
        )
    return estimate, product


@anchored_weight_grads_op.register_fake
def _(
    grad_output: Tensor,
    kept: list[Tensor],
    kept_x_0: list[Tensor],
    codec: str,
    num_columns: int,
    config_spec: str,
) -> tuple[Tensor, Tensor]:
    estimate = grad_output.new_empty(grad_output.shape[1], num_columns)
    return estimate, torch.empty_like(estimate, dtype=accumulation_dtype(grad_output.dtype))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.set_materialize_grads(False)
    x, weight, x_0, weight_0, payload, codec, ctx.scale, _, ctx.config_spec = inputs
    ctx.codec = codec if payload else "fp32"
    ctx.num_columns, ctx.num_coded, ctx.dtype = x.shape[1], len(payload), x_0.dtype
    ctx.dtype_0 = None if weight_0 is None else weight_0.dtype
    needs_x, needs_weight, needs_x_0, needs_weight_0 = ctx.needs_input_grad[:4]
    kept_x_0 = (payload or [x_0]) if needs_weight or needs_weight_0 else []
    ctx.num_kept_x_0 = len(kept_x_0)
    ctx.save_for_backward(
        weight if needs_x else None,
        weight_0 if needs_x_0 else None,
        *kept_x_0,
        *(output[1] if needs_weight else []),
    )


def _backward(ctx: Any, grad_output: Tensor | None, _: Any = None) -> tuple[Any, ...]:
    refuse_double_backward("anchored_linear")
    rest = ([None] * ctx.num_coded, None, None, None, None)
    if grad_output is None:
        return (None, None, None, None, *rest)
    weight, weight_0, *kept = ctx.saved_tensors
    kept_x_0, kept = kept[: ctx.num_kept_x_0], kept[ctx.num_kept_x_0 :]
    if ctx.num_coded:
        mark_read(kept_x_0)
    needs_x, needs_weight, needs_x_0, needs_weight_0 = ctx.needs_input_grad[:4]

    grad_x = grad_output @ weight if needs_x else None
    grad_x_0 = grad_weight = product = None
    if needs_x_0 and weight_0 is not None:
        grad_x_0 = (grad_output @ (ctx.scale * weight_0).to(grad_output.dtype)).to(ctx.dtype)
    if needs_weight:
        grad_weight, product = torch.ops.rmm_gnn.anchored_weight_grads(
            grad_output, kept, kept_x_0, ctx.codec, ctx.num_columns, ctx.config_spec
        )
    elif needs_weight_0:
        product = torch.ops.rmm_gnn.coded_weight_grad(grad_output, kept_x_0, ctx.num_columns, ctx.codec)
    grad_weight_0 = (product * ctx.scale).to(ctx.dtype_0) if needs_weight_0 and product is not None else None
    return (grad_x, grad_weight, grad_x_0, grad_weight_0, *rest)


anchored_linear_op.register_autograd(_backward, setup_context=_setup_context)
