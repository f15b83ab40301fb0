"""``beta input + alpha mat1 mat2`` that keeps a sketch of ``mat1``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.compression import compress, compress_like
from rmm_gnn.config import RMMConfig


@torch.library.custom_op("rmm_gnn::addmm", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def addmm_op(
    input: Tensor,  # broadcasts to [B, M]
    mat1: Tensor,  # [B, N]
    mat2: Tensor,  # [N, M]
    beta: float,
    alpha: float,
    seed: Tensor,
    config_spec: str,
) -> tuple[Tensor, list[Tensor]]:
    """Torch's output; the seed and the compressed ``mat1``."""
    config = RMMConfig.from_spec(config_spec)
    with torch.autocast(mat1.device.type, enabled=False):
        out = torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha)
        return out, [seed.clone(), *compress(mat1, config, seed).to_list()]


@addmm_op.register_fake
def _(
    input: Tensor, mat1: Tensor, mat2: Tensor, beta: float, alpha: float, seed: Tensor, config_spec: str
) -> tuple[Tensor, list[Tensor]]:
    out = mat1.new_empty(mat1.shape[0], mat2.shape[1])
    return out, [torch.empty_like(seed), *compress_like(mat1, RMMConfig.from_spec(config_spec)).to_list()]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    input, mat1, mat2, beta, alpha, _, config_spec = inputs
    ctx.set_materialize_grads(False)
    ctx.config_spec, ctx.beta, ctx.alpha = config_spec, beta, alpha
    ctx.input_shape, ctx.num_columns = input.shape, mat1.shape[1]
    kept = output[1] if ctx.needs_input_grad[2] else []
    ctx.save_for_backward(mat2 if ctx.needs_input_grad[1] else None, *kept)


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward("addmm")
    nothing = (None,) * 4
    if grad_output is None:
        return (None, None, None, *nothing)
    mat2, *kept = ctx.saved_tensors
    needs_input, needs_mat1, needs_mat2 = ctx.needs_input_grad[:3]
    grad_input = (grad_output * ctx.beta).sum_to_size(ctx.input_shape) if needs_input else None
    grad_mat1 = (grad_output @ mat2.t()).mul_(ctx.alpha) if needs_mat1 else None
    grad_mat2 = None
    if needs_mat2:
        seed, *compressed = kept
        estimate, _ = torch.ops.rmm_gnn.linear_weight_grad(
            grad_output, compressed, seed, ctx.num_columns, ctx.config_spec
        )
        grad_mat2 = estimate.t() * ctx.alpha
    return (grad_input, grad_mat1, grad_mat2, *nothing)


addmm_op.register_autograd(_backward, setup_context=_setup_context)
