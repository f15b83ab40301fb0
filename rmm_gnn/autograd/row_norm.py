"""Backward of normalisation over rows, from rows that were kept in a codec: what layer and RMS normalisation share."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.codecs import get_codec, row_tiles
from rmm_gnn.kernels.reference import accumulation_dtype

TILE_BYTES = 1 << 20


def row_norm_backward(
    grads: Tensor,  # [B, C]
    weight: Tensor | None,  # C numbers
    kept: list[Tensor],
    codec: str,
    *,
    centred: bool,
    needs_x: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:  # [B, C] or [0], [C]
    r"""Gradients of x (empty where not needed) and of gamma, in the accumulation type.

    .. math::
        \partial\gamma = \sum_{rows} g \hat x, \qquad
        \partial x = \frac1\sigma \left( g' - \tfrac1C \sum g' - \hat x \, \tfrac1C \sum g' \hat x \right)

    with :math:`g' = \gamma g`, the middle term only where the rows were ``centred``.

    Args:
        grads: g, the gradient of the output.
        weight: gamma, or None for ones.
        kept: 1/sigma of every row [B], then the coded normalised rows.
        codec: Theirs.
        centred: Whether the rows had their means taken away.
        needs_x: Whether the gradient of x is wanted.
        backend: What decodes.
    """
    dtype, columns = accumulation_dtype(grads.dtype), grads.shape[1]
    inverse_scale, payload = kept[0], list(kept[1:])
    gamma = None if weight is None else weight.reshape(-1).to(dtype)
    grad_x = torch.empty_like(grads, memory_format=torch.contiguous_format) if needs_x else grads.new_empty(0)
    grad_weight = grads.new_zeros(columns, dtype=dtype)
    for start, stop in row_tiles(grads.shape[0], columns, TILE_BYTES, dtype.itemsize):
        block = grads[start:stop].to(dtype)
        normalized = get_codec(codec).decode(payload, start, stop, columns, dtype, backend=backend)
        products = block * normalized
        grad_weight += products.sum(0)
        if not needs_x:
            continue
        if gamma is not None:
            block, products = block * gamma, products.mul_(gamma)
        rest = normalized.mul_(products.mean(1, keepdim=True))
        if centred:
            rest += block.mean(1, keepdim=True)
        grad_x[start:stop] = (block - rest).mul_(inverse_scale[start:stop].unsqueeze(1))
    return grad_x, grad_weight
