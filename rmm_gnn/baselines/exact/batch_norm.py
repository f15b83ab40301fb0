"""BatchNorm that keeps its input in few bits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.baselines.exact.config import DEFAULT_BITS, codec_of
from rmm_gnn.codecs import row_tiles
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.seeding import draw_seed

_TILE_BYTES = 1 << 24


@torch.compiler.disable
def exact_batch_norm(
    x: Tensor,  # [B, C] or [B, C, *]
    running_mean: Tensor | None,  # [C]
    running_var: Tensor | None,  # [C]
    weight: Tensor | None = None,  # [C]
    bias: Tensor | None = None,  # [C]
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    bits: int | None = DEFAULT_BITS,
) -> Tensor:
    r"""``torch.nn.functional.batch_norm`` that keeps its input in few bits in training.

    Output, statistics (also the running ones) and the gradient of ``bias`` are exact.  Backward is PyTorch's formula at
    the exact mean and variance and the input as read back, :math:`\hat X`.  The gradient of ``weight`` is linear in it
    and so unbiased.  The gradient of ``x`` is quadratic; with :math:`v_{ij}` the rounding's variance,

    .. math::
        \mathbb{E}[\widehat{\partial x}_{ij}] - \partial x_{ij}
            = - \frac{\gamma_j}{B} \, \frac{y_{ij} \, v_{ij}}{(\sigma_j^2 + \epsilon)^{3/2}}

    a bias that vanishes as the batch grows.  Kept are B (C bits / 8 + 8) bytes, mean and inverse deviation, and
    ``weight``.  Transient in backward: one value of the accumulation type for every entry, which is the result unless x
    is of a low type.  Every call with ``training`` draws a seed, whether or not grad mode is on.

    Where PyTorch normalises by the running statistics, or no gradient is wanted, this is its function.

    Args:
        x: Input; more than two dimensions are normalised as rows [B..., C].
        running_mean: Changed in place, or None.
        running_var: Changed in place, or None.
        weight: Scale, or None.
        bias: Shift, or None.
        training: Whether to normalise by the statistics of the batch.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance.
        bits: 1, 2, 4, 8, or None to keep the type of the input.

    Raises:
        ValueError: If ``bits`` is out of range, and where PyTorch's function raises.
        TypeError: If ``bits`` is of the wrong type.
        RuntimeError: In backward, if it is run with ``create_graph=True``.
    """
    codec_of(bits)
    seed = draw_seed(x) if training else None
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    # PyTorch has its own word on batches of one value, and on eps.
    if seed is None or not wanted or x.dim() < 2 or x.numel() <= x.shape[1] or eps <= 0.0:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    rows = x.movedim(1, -1)
    out = _BatchNorm.apply(
        rows.reshape(-1, rows.shape[-1]), weight, bias, running_mean, running_var, momentum, eps, bits, seed
    )
    return out.view(rows.shape).movedim(-1, 1)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [B, C]
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        bits: int | None,
        seed: Tensor,
    ) -> Tensor:
        out, mean, inverse_deviation = torch.native_batch_norm(
            x, weight, bias, running_mean, running_var, True, momentum, eps
        )
        ctx.bits, ctx.dtypes = bits, [None if t is None else t.dtype for t in (x, weight, bias)]
        kept: list[Tensor | None] = []
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            kept = [weight, mean, inverse_deviation, *codec_of(bits).encode_matrix(x, seed)]
        ctx.save_for_backward(*kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_double_backward("exact_batch_norm")
        (grad_output,) = grad_outputs
        dtype = accumulation_dtype(grad_output.dtype)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        sums = grad_output.sum(0, dtype=dtype)
        grad_x = grad_weight = None
        if needs_x or needs_weight:
            weight, mean, inverse_deviation, *payload = ctx.saved_tensors
            mean, inverse_deviation = mean.to(dtype), inverse_deviation.to(dtype)
            centred, dots = _centred_input(grad_output, mean, ctx.bits, payload, needs_x)
            if centred is not None:
                scale = inverse_deviation if weight is None else inverse_deviation * weight
                num_rows = grad_output.shape[0]
                centred.mul_(inverse_deviation.square().mul_(dots).div_(-num_rows))
                grad_x = centred.add_(grad_output).sub_(sums / num_rows).mul_(scale).to(ctx.dtypes[0])
            if needs_weight:
                grad_weight = (dots * inverse_deviation).to(ctx.dtypes[1])
        grad_bias = sums.to(ctx.dtypes[2]) if needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None, None, None, None


def _centred_input(
    grad_output: Tensor,  # [B, C]
    mean: Tensor,  # [C]
    bits: int | None,
    payload: list[Tensor],
    keep: bool,
) -> tuple[Tensor | None, Tensor]:  # [B, C], [C]
    """Decode X - 1 mean^T once: return it if ``keep``, and its column-wise products with ``grad_output``."""
    codec, (num_rows, num_columns) = codec_of(bits), grad_output.shape
    centred = torch.empty(num_rows, num_columns, dtype=mean.dtype, device=mean.device) if keep else None
    dots = torch.zeros_like(mean)
    for start, stop in row_tiles(num_rows, num_columns, _TILE_BYTES):
        tile = codec.decode(payload, start, stop, num_columns, mean.dtype) - mean
        if centred is not None:
            centred[start:stop] = tile
        dots += tile.mul_(grad_output[start:stop]).sum(0)
    return centred, dots
