"""The linear layer's operators: forward returns the exact output and all that is kept; backward estimates from it.

All are opaque to ``torch.compile``.  A traced forward would be silently wrong there: the partitioner may draw fresh
random numbers in backward, or move the sketch into backward and so keep all of x.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.compression import CompressedActivation, compress, compress_like, weight_grad
from rmm_gnn.config import RMMConfig
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.row_masks import UNKNOWN, check_masked_rows, row_numbers

_SEEDED = (torch.Tag.nondeterministic_seeded,)


@torch.library.custom_op("rmm_gnn::linear", mutates_args=(), tags=_SEEDED)
def linear_op(
    x: Tensor,  # [B, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None,  # [M]
    seed: Tensor,
    config_spec: str,
    row_norms: Tensor | None = None,  # [B]
    row_mask: Tensor | None = None,  # B bools of any shape
    num_rows: int = 0,
    checked: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Algorithm 1, forward: X W^T + b, and the compressed X, or its ``num_rows`` rows that ``row_mask`` marks.

    Backward checks that the other rows have no gradient where the call is to be ``checked``.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight, bias), _compressed(x, seed, config_spec, row_norms, row_mask, num_rows)


@linear_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seed: Tensor,
    config_spec: str,
    row_norms: Tensor | None = None,
    row_mask: Tensor | None = None,
    num_rows: int = 0,
    checked: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    out = x.new_empty(x.shape[0], weight.shape[0])
    return out, _compressed_like(x, seed, config_spec, row_mask, num_rows)


@torch.library.custom_op("rmm_gnn::compress", mutates_args=(), tags=_SEEDED)
def compress_op(
    x: Tensor,  # [B, N]
    seed: Tensor,
    config_spec: str,
    row_mask: Tensor | None = None,
    num_rows: int = 0,
) -> list[Tensor]:
    """The seed and the compressed X, or rows of it, for several layers that read X."""
    with torch.autocast(x.device.type, enabled=False):
        return _compressed(x, seed, config_spec, None, row_mask, num_rows)


@compress_op.register_fake
def _(x: Tensor, seed: Tensor, config_spec: str, row_mask: Tensor | None = None, num_rows: int = 0) -> list[Tensor]:
    return _compressed_like(x, seed, config_spec, row_mask, num_rows)


def _compressed(
    x: Tensor,
    seed: Tensor,
    config_spec: str,
    row_norms: Tensor | None,
    row_mask: Tensor | None,
    num_rows: int,
) -> list[Tensor]:
    rows = None if row_mask is None else row_numbers(row_mask, num_rows)
    if rows is not None and row_norms is not None:
        row_norms = row_norms.index_select(0, rows)
    compressed = compress(x, RMMConfig.from_spec(config_spec), seed, row_norms, rows=rows)
    # The seed leaves with its sketch: a checkpoint policy that keeps the one and draws the other anew cannot part them.
    return [seed.clone(), *compressed.to_list()]


def _compressed_like(x: Tensor, seed: Tensor, config_spec: str, row_mask: Tensor | None, num_rows: int) -> list[Tensor]:
    config = RMMConfig.from_spec(config_spec)
    if row_mask is None:
        compressed = compress_like(x, config)
    elif num_rows == UNKNOWN:
        size: Any = torch.library.get_ctx().new_dynamic_size(min=1)
        compressed = compress_like(x, config, size=size)
    else:
        compressed = compress_like(x, config, num_rows)
    return [torch.empty_like(seed), *compressed.to_list()]


@torch.library.custom_op("rmm_gnn::linear_of_kept", mutates_args=())
def linear_of_kept_op(
    x: Tensor,  # [B, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None,  # [M]
    kept: list[Tensor],
    config_spec: str,
    row_mask: Tensor | None = None,
    num_rows: int = 0,
    checked: bool = False,
) -> Tensor:
    """X W^T + b with a sketch of X made before, for this layer or another one that reads the same X.

    Nothing is ``kept`` where no row has a gradient.
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight, bias)


@linear_of_kept_op.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    kept: list[Tensor],
    config_spec: str,
    row_mask: Tensor | None = None,
    num_rows: int = 0,
    checked: bool = False,
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@torch.library.custom_op("rmm_gnn::exact_linear", mutates_args=(), tags=_SEEDED)
def exact_linear_op(x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor) -> Tensor:
    """A training call without grad mode: ``linear``, with the seed as an argument so that its draw is not dead code.

    Reentrant checkpointing runs its first pass so.  Were the draw removed from a compiled graph there, the generator
    would not advance, and S would be the same at every step.
    """
    return F.linear(x, weight, bias)


@exact_linear_op.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("rmm_gnn::linear_weight_grad", mutates_args=(), tags=_SEEDED)
def weight_grad_op(
    grad_output: Tensor,  # [B, M]
    kept: list[Tensor],
    seed: Tensor,
    num_columns: int,
    config_spec: str,
    row_mask: Tensor | None = None,  # B bools of any shape
    num_rows: int = 0,
    checked: bool = False,
) -> tuple[Tensor, Tensor]:
    """Algorithm 1, backward: the estimated weight gradient [M, N] and the exact row sum of ``grad_output`` [M].

    The estimate is that of the ``num_rows`` rows which ``row_mask`` marks, the sum that of all.
    """
    config = RMMConfig.from_spec(config_spec)
    compressed = CompressedActivation.from_list(list(kept), config)
    with torch.autocast(grad_output.device.type, enabled=False):
        if row_mask is not None and checked:
            check_masked_rows(grad_output, row_mask, config.workspace_bytes)
        rows = None if row_mask is None else row_numbers(row_mask, num_rows)
        return weight_grad(
            grad_output, compressed, config, seed, num_columns=num_columns, dtype=grad_output.dtype, rows=rows
        )


@weight_grad_op.register_fake
def _(
    grad_output: Tensor,
    kept: list[Tensor],
    seed: Tensor,
    num_columns: int,
    config_spec: str,
    row_mask: Tensor | None = None,
    num_rows: int = 0,
    checked: bool = False,
) -> tuple[Tensor, Tensor]:
    rows = grad_output.shape[1]
    sums = grad_output.new_empty(rows, dtype=accumulation_dtype(grad_output.dtype))
    return grad_output.new_empty(rows, num_columns), sums


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.set_materialize_grads(False)
    ctx.seed_grads = None
    _keep(ctx, inputs, output[1])


def _setup_context_of_kept(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.seed_grads = [None] * len(inputs[3])  # for the list in the seed's place
    _keep(ctx, inputs, inputs[3])


def _keep(ctx: Any, inputs: tuple[Any, ...], kept: list[Tensor]) -> None:
    x, weight, bias, _, config_spec = inputs[:5]
    row_mask, ctx.num_rows, ctx.checked = inputs[-3:]
    ctx.config_spec = config_spec
    ctx.num_columns = x.shape[1]
    ctx.bias_dtype = None if bias is None else bias.dtype
    needs_x, needs_weight = ctx.needs_input_grad[:2]
    # The weight is kept only for the gradient of x.  The mask is the caller's: one for all layers that are given it.
    ctx.save_for_backward(
        weight if needs_x else None, row_mask if needs_weight else None, *(kept if needs_weight else [])
    )


def _backward(ctx: Any, grad_output: Tensor | None, _: Any = None) -> tuple[Any, ...]:
    refuse_double_backward("rmm_linear")
    # All that is no tensor, or has no gradient.
    rest = (None,) * (len(ctx.needs_input_grad) - 4)
    if grad_output is None:
        return (None, None, None, ctx.seed_grads, *rest)
    weight, row_mask, *kept = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]

    grad_x = grad_output @ weight if needs_x else None
    grad_weight = grad_bias = None
    if needs_weight and kept:
        seed, *compressed = kept
        grad_weight, grad_bias = torch.ops.rmm_gnn.linear_weight_grad(
            grad_output, compressed, seed, ctx.num_columns, ctx.config_spec, row_mask, ctx.num_rows, ctx.checked
        )
    elif needs_weight:  # no row is marked
        grad_weight = grad_output.new_zeros(grad_output.shape[1], ctx.num_columns)
        if row_mask is not None and ctx.checked:
            check_masked_rows(grad_output, row_mask, RMMConfig.from_spec(ctx.config_spec).workspace_bytes)
    if needs_bias and grad_bias is None:
        grad_bias = grad_output.sum(0)
    if grad_bias is not None:
        grad_bias = grad_bias.to(ctx.bias_dtype) if needs_bias else None
    return (grad_x, grad_weight, grad_bias, ctx.seed_grads, *rest)


linear_op.register_autograd(_backward, setup_context=_setup_context)
linear_of_kept_op.register_autograd(_backward, setup_context=_setup_context_of_kept)
