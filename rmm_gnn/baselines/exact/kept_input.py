"""What EXACT keeps of a product's input, and the weight gradient from it."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.baselines.exact.config import ExactConfig
from rmm_gnn.baselines.exact.projection import project, project_back
from rmm_gnn.codecs import row_tiles
from rmm_gnn.kernels.reference import accumulation_dtype

_TILE_BYTES = 1 << 24


def keep_input(x: Tensor, config: ExactConfig, seed: Tensor) -> list[Tensor]:
    """Project and encode x [B, D], a tile of rows at a time."""
    num_rows, num_features = x.shape
    size = config.kept_features(num_features)
    payload = config.codec.empty(num_rows, size, x.dtype, x.device)
    for start, stop in row_tiles(num_rows, num_features, _TILE_BYTES):
        tile = x[start:stop]
        config.codec.encode(project(tile, size, seed) if size < num_features else tile, payload, start, seed)
    return payload


def kept_like(x: Tensor, config: ExactConfig) -> list[Tensor]:
    """Return tensors of the shapes and types that ``keep_input`` would return, for tracing."""
    return config.codec.empty(x.shape[0], config.kept_features(x.shape[1]), x.dtype, x.device)


def weight_grad(
    grad_output: Tensor,  # [B, M]
    kept: list[Tensor],
    config: ExactConfig,
    seed: Tensor,
    num_features: int,
) -> Tensor:  # [M, D]
    r"""Estimate :math:`Y^T X` by :math:`(Y^T X_q) R^T`, in the type of ``grad_output``.

    The rebuilt input :math:`X_q R^T` never exists.  Sums over rows are formed in the accumulation type.
    """
    dtype, size = accumulation_dtype(grad_output.dtype), config.kept_features(num_features)
    total = grad_output.new_zeros(grad_output.shape[1], size, dtype=dtype)
    width = max(size, grad_output.shape[1])
    for start, stop in row_tiles(grad_output.shape[0], width, _TILE_BYTES, torch.float32.itemsize):
        rows = config.codec.decode(kept, start, stop, size, dtype)
        total.addmm_(grad_output[start:stop].T.to(dtype), rows)
    if size < num_features:
        total = project_back(total, num_features, seed)
    return total.to(grad_output.dtype)
