"""ReLU and leaky ReLU by one bit for every entry, ELU by its rounded input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.relu  # noqa: F401  (registers the operator)
from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.baselines.exact.config import DEFAULT_BITS, codec_of
from rmm_gnn.codecs import row_tiles
from rmm_gnn.seeding import draw_seed

_TILE_BYTES = 1 << 24


def exact_relu(x: Tensor) -> Tensor:
    """ReLU that keeps one bit for every entry; value and gradient are PyTorch's.

    Raises:
        RuntimeError: In backward, if it is run with ``create_graph=True``.

    Example:
        >>> x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
        >>> exact_relu(x).sum().backward()
        >>> x.grad
        tensor([0., 0., 1.])
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.relu(x)
    return torch.ops.rmm_gnn.relu(x, None, "auto")[0]


def exact_leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Leaky ReLU that keeps one bit for every entry; value and gradient are PyTorch's.

    Raises:
        RuntimeError: In backward, if it is run with ``create_graph=True``.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.leaky_relu(x, negative_slope)
    return torch.ops.rmm_gnn.relu(x, float(negative_slope), "auto")[0]


@torch.compiler.disable
def exact_elu(x: Tensor, alpha: float = 1.0, *, bits: int | None = DEFAULT_BITS) -> Tensor:
    """ELU that keeps its input in few bits, n (bits / 8 + 8 / C) bytes for n entries in rows of C.

    The value is PyTorch's; the gradient is PyTorch's at the input as read back.  The input is right on average, the
    slope, which is not linear in it, is not.  Every call draws a seed, whether or not grad mode is on.

    Args:
        x: Input [..., C]; the last dimension shares an offset and a step.
        alpha: Value at minus infinity, negated.
        bits: 1, 2, 4, 8, or None to keep the type of the input.

    Raises:
        ValueError: If ``bits`` is out of range.
        TypeError: If ``bits`` is of the wrong type.
        RuntimeError: In backward, if it is run with ``create_graph=True``.
    """
    codec_of(bits)
    seed = draw_seed(x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return F.elu(x, alpha)
    return _ELU.apply(x, alpha, bits, seed)


class _ELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float, bits: int | None, seed: Tensor) -> Tensor:
        ctx.alpha, ctx.bits = alpha, bits
        ctx.save_for_backward(*codec_of(bits).encode_matrix(_as_rows(x), seed))
        return F.elu(x, alpha)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("exact_elu")
        codec, payload = codec_of(ctx.bits), list(ctx.saved_tensors)
        grad_x = torch.empty_like(grad_outputs[0], memory_format=torch.contiguous_format)
        source, target = _as_rows(grad_outputs[0]), _as_rows(grad_x)
        num_rows, num_columns = source.shape
        for start, stop in row_tiles(num_rows, num_columns, _TILE_BYTES):
            rows = codec.decode(payload, start, stop, num_columns, source.dtype)
            target[start:stop] = torch.ops.aten.elu_backward(source[start:stop], ctx.alpha, 1.0, 1.0, False, rows)
        return grad_x, None, None, None


def _as_rows(x: Tensor) -> Tensor:  # [*, C] -> [B, C]
    return x.reshape(-1, x.shape[-1]) if x.dim() and x.numel() else x.reshape(1, -1)
