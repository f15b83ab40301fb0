"""GELU, SiLU and ELU that keep their derivative in a codec.

The derivative of the output with respect to the input is computed in forward and kept in a few bits, rounded at random
so that it is right on average: the gradient of x is then unbiased.  (Keeping the *input* in few bits would not do: the
derivative is not linear in it.)  Few-bit derivatives, rounded to the nearest of a few values, are due to G. Novikov et
al., *Few-Bit Backward: Quantized Gradients of Activation Functions for Memory Footprint Reduction* (2022).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.codecs import get_codec, row_tiles
from rmm_gnn.kernels.reference import accumulation_dtype

_SEEDED = (torch.Tag.nondeterministic_seeded,)
_TILE_BYTES = 1 << 20


class Activation(NamedTuple):
    """An elementwise function with one number as a setting.

    Attributes:
        function: (x, setting) -> f(x), as torch computes it.
        derivative: (x, setting) -> f'(x), as torch's backward computes it where that is right.
    """

    function: Callable[[Tensor, float], Tensor]
    derivative: Callable[[Tensor, float], Tensor]


def _gelu(approximate: str) -> Activation:
    def derivative(x: Tensor, _: float) -> Tensor:
        if approximate == "tanh":
            # Torch squares x, and has nan where that overflows: it would become that of every entry with the same
            # step.  The derivative is 0 or 1 long before.
            x = torch.where(x.isinf(), x, x.clamp(-100.0, 100.0))
        return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate=approximate)

    return Activation(lambda x, _: F.gelu(x, approximate=approximate), derivative)


ACTIVATIONS = {
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
    "silu": Activation(lambda x, _: F.silu(x), lambda x, _: torch.ops.aten.silu_backward(torch.ones_like(x), x)),
    "elu": Activation(
        F.elu, lambda x, alpha: torch.ops.aten.elu_backward(torch.ones_like(x), alpha, 1.0, 1.0, False, x)
    ),
}


@torch.library.custom_op("rmm_gnn::activation", mutates_args=(), tags=_SEEDED)
def activation_op(
    x: Tensor, name: str, setting: float, codec: str, seed: Tensor, backend: str
) -> tuple[Tensor, list[Tensor]]:
    """f(x) and the coded derivative; a row of the code is a run of the last dimension."""
    activation, rows = ACTIVATIONS[name], _as_rows(x)
    payload = get_codec(codec).empty(rows.shape[0], rows.shape[1], x.dtype, x.device)
    dtype = accumulation_dtype(x.dtype)
    for start, stop in row_tiles(rows.shape[0], rows.shape[1], _TILE_BYTES, dtype.itemsize):
        block = activation.derivative(rows[start:stop].to(dtype), setting)
        get_codec(codec).encode(block, payload, start, seed, backend=backend)
    return activation.function(x, setting), payload


@activation_op.register_fake
def _(x: Tensor, name: str, setting: float, codec: str, seed: Tensor, backend: str) -> tuple[Tensor, list[Tensor]]:
    rows = _as_rows(x)
    return torch.empty_like(x), get_codec(codec).empty(rows.shape[0], rows.shape[1], x.dtype, x.device)


@torch.library.custom_op("rmm_gnn::activation_backward", mutates_args=())
def activation_backward_op(grad_output: Tensor, payload: list[Tensor], codec: str, backend: str) -> Tensor:
    """``grad_output`` times the derivative as it is read back."""
    grad_x = torch.empty_like(grad_output, memory_format=torch.contiguous_format)
    source, target = _as_rows(grad_output), _as_rows(grad_x)
    dtype, columns = accumulation_dtype(grad_output.dtype), source.shape[1]
    for start, stop in row_tiles(source.shape[0], columns, _TILE_BYTES, dtype.itemsize):
        derivative = get_codec(codec).decode(list(payload), start, stop, columns, dtype, backend=backend)
        target[start:stop] = source[start:stop] * derivative
    return grad_x


@activation_backward_op.register_fake
def _(grad_output: Tensor, payload: list[Tensor], codec: str, backend: str) -> Tensor:
    return torch.empty_like(grad_output, memory_format=torch.contiguous_format)


def _as_rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.set_materialize_grads(False)
    _, _, _, ctx.codec, _, ctx.backend = inputs
    ctx.save_for_backward(*output[1])


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward("a lean activation")
    grad_x = None
    if grad_output is not None:
        grad_x = torch.ops.rmm_gnn.activation_backward(grad_output, list(ctx.saved_tensors), ctx.codec, ctx.backend)
    return grad_x, None, None, None, None, None


activation_op.register_autograd(_backward, setup_context=_setup_context)
