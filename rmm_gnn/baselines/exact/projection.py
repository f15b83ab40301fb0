"""The random projection along features; R is generated from the seed block by block and never kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.seeding import random_signs

_BLOCK_ENTRIES = 1 << 21


def projection(num_features: int, size: int, seed: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:  # [D, r]
    r"""Return R, independent signs over :math:`\sqrt{r}`, so that E[R R^T] = I."""
    return random_signs(seed, 0, num_features * size, dtype).view(num_features, size).mul_(size**-0.5)


def project(x: Tensor, size: int, seed: Tensor) -> Tensor:  # [B, D] -> [B, r]
    """Return X R in the accumulation type."""
    dtype = accumulation_dtype(x.dtype)
    out = x.new_zeros(x.shape[0], size, dtype=dtype)
    for start, stop, signs in _sign_blocks(x.shape[1], size, seed, dtype):
        out.addmm_(x[:, start:stop].to(dtype), signs)
    return out.mul_(size**-0.5)


def project_back(matrix: Tensor, num_features: int, seed: Tensor) -> Tensor:  # [M, r] -> [M, D]
    """Return ``matrix`` R^T; ``matrix`` is of an accumulation type."""
    size = matrix.shape[1]
    out = matrix.new_empty(matrix.shape[0], num_features)
    for start, stop, signs in _sign_blocks(num_features, size, seed, matrix.dtype):
        torch.mm(matrix, signs.T, out=out[:, start:stop])
    return out.mul_(size**-0.5)


def _sign_blocks(num_features: int, size: int, seed: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, int, Tensor]]:
    """Cut R into runs of features: start, stop, and their signs [stop - start, r]."""
    height = max(1, _BLOCK_ENTRIES // size)
    for start in range(0, num_features, height):
        stop = min(start + height, num_features)
        yield start, stop, random_signs(seed, start * size, stop * size, dtype).view(stop - start, size)
