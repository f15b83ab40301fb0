"""ReLU and leaky ReLU that keep the sign of every entry: one bit instead of the output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.bit_masks import mask_bytes, read_bits, tiles, write_bits
from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.kernels import implementation


@torch.library.custom_op("rmm_gnn::relu", mutates_args=())
def relu_op(x: Tensor, negative_slope: float | None, backend: str) -> tuple[Tensor, Tensor]:
    """ReLU, or leaky ReLU where a slope is given, and one bit for every entry."""
    kernels = implementation("activations", backend, x)
    if kernels is not None:
        out, bits = kernels.relu(x, negative_slope)
        return out, bits
    flat, bits = x.reshape(-1), torch.empty(mask_bytes(x.numel()), dtype=torch.uint8, device=x.device)
    for tile in tiles(x.numel()):
        part = flat[tile.entries]
        # As torch has it, the gradient passes a nan in ReLU, and takes the slope in leaky ReLU.
        write_bits((part <= 0).logical_not_() if negative_slope is None else part > 0, bits, tile)
    return F.relu(x) if negative_slope is None else F.leaky_relu(x, negative_slope), bits


@relu_op.register_fake
def _(x: Tensor, negative_slope: float | None, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(mask_bytes(x.numel()), dtype=torch.uint8)


@torch.library.custom_op("rmm_gnn::masked_grad", mutates_args=())
def masked_grad_op(grad_output: Tensor, bits: Tensor, divisor: float, slope: float, backend: str) -> Tensor:
    """``grad_output`` over ``divisor`` where the bit is set and times ``slope`` elsewhere; 0 where that is 0."""
    kernels = implementation("activations", backend, grad_output)
    if kernels is not None:
        found: Tensor = kernels.masked_grad(grad_output, bits, divisor, slope)
        return found
    grad_x = torch.empty_like(grad_output, memory_format=torch.contiguous_format)
    source, target = grad_output.reshape(-1), grad_x.view(-1)
    factor = grad_output.new_ones(()).div_(divisor)  # rounded to the type, as dropout rounds it in forward
    for tile in tiles(source.numel()):
        part, out, mask = source[tile.entries], target[tile.entries], read_bits(bits, tile).to(source.dtype)
        # torch's own backward functions, fed with the mask: they select without a product, so that no inf becomes nan.
        if slope == 0.0:
            torch.ops.aten.threshold_backward.grad_input(part, mask, 0.0, grad_input=out)
        else:
            torch.ops.aten.leaky_relu_backward.grad_input(part, mask, slope, False, grad_input=out)
        if divisor != 1.0:
            out.mul_(factor)
    return grad_x


@masked_grad_op.register_fake
def _(grad_output: Tensor, bits: Tensor, divisor: float, slope: float, backend: str) -> Tensor:
    return torch.empty_like(grad_output, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.negative_slope, ctx.backend = inputs[1:]
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, None, None]:
    refuse_double_backward("relu")
    if grad_output is None:
        return None, None, None
    (bits,) = ctx.saved_tensors
    slope = ctx.negative_slope or 0.0
    return torch.ops.rmm_gnn.masked_grad(grad_output, bits, 1.0, slope, ctx.backend), None, None


relu_op.register_autograd(_backward, setup_context=_setup_context)
