"""PyTorch's dropout with its mask kept in one bit for every entry."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.bit_masks import mask_bytes, read_bits, tiles, write_bits
from rmm_gnn.autograd.double_backward import refuse_double_backward


def exact_dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """``torch.nn.functional.dropout`` that keeps its mask packed: ceil(n / 8) bytes for n entries.

    Values, gradients and the use of the generator are PyTorch's.  Where no gradient is wanted, and for p of 0 and 1,
    this is PyTorch's function itself.  Transient: PyTorch's mask, one value for every entry.

    Args:
        x: Input of any shape.
        p: Probability of an entry to be zeroed.
        training: Whether dropout acts.

    Raises:
        ValueError: If p is not in [0, 1].
        RuntimeError: In backward, if it is run with ``create_graph=True``.

    Example:
        >>> x = torch.ones(1000, requires_grad=True)
        >>> out = exact_dropout(x, 0.5)
        >>> out.sum().backward()
        >>> torch.equal(x.grad, out)
        True
    """
    if not (training and 0.0 < p < 1.0 and torch.is_grad_enabled() and x.requires_grad):
        return F.dropout(x, p, training)
    return torch.ops.rmm_gnn.exact_baseline_dropout(x, p)[0]


@torch.library.custom_op("rmm_gnn::exact_baseline_dropout", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def dropout_op(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """Dropout of ``x``, and the mask in bits."""
    if x.device.type == "cpu":
        # The calls that PyTorch's own function consists of there: same generator, same rounding.
        noise = torch.empty_like(x).bernoulli_(1 - p)
        bits = _pack(noise != 0)
        return noise.div_(1 - p).mul_(x), bits
    out, mask = torch.native_dropout(x, p, True)
    return out, _pack(mask)


@dropout_op.register_fake
def _(x: Tensor, p: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(mask_bytes(x.numel()), dtype=torch.uint8)


def _pack(mask: Tensor) -> Tensor:
    flat, bits = mask.reshape(-1), torch.empty(mask_bytes(mask.numel()), dtype=torch.uint8, device=mask.device)
    for tile in tiles(flat.numel()):
        write_bits(flat[tile.entries], bits, tile)
    return bits


@torch.library.custom_op("rmm_gnn::exact_baseline_dropout_backward", mutates_args=())
def dropout_backward_op(grad_output: Tensor, bits: Tensor, p: float) -> Tensor:
    """``grad_output`` times the mask over 1 - p; a nan stays one also where the mask is 0, as in PyTorch."""
    grad_x = torch.empty_like(grad_output, memory_format=torch.contiguous_format)
    source, target = grad_output.reshape(-1), grad_x.view(-1)
    for tile in tiles(source.numel()):
        noise = read_bits(bits, tile).to(source.dtype).div_(1 - p)
        torch.mul(source[tile.entries], noise, out=target[tile.entries])
    return grad_x


@dropout_backward_op.register_fake
def _(grad_output: Tensor, bits: Tensor, p: float) -> Tensor:
    return torch.empty_like(grad_output, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.p = inputs[1]
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, None]:
    refuse_double_backward("exact_dropout")
    if grad_output is None:
        return None, None
    return torch.ops.rmm_gnn.exact_baseline_dropout_backward(grad_output, *ctx.saved_tensors, ctx.p), None


dropout_op.register_autograd(_backward, setup_context=_setup_context)
