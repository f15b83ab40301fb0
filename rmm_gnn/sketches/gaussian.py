"""Gaussian sketch: the S of the paper's eq. (5)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn.sketches.dense import EntrywiseSketch, cell_words
from rmm_gnn.sketches.moments import Moments


@dataclass(frozen=True)
class GaussianSketch(EntrywiseSketch):
    r"""Dense S with independent N(0, 1/k) entries (eq. 5), from a counter-based Box-Muller transform.

    Streamed in tiles, S is never held whole; the product still costs 2 B k N operations for x and as many for
    grad_output, which is why ``CountSketch`` is the default.  Entries agree between devices up to the rounding of their
    ``log`` and ``cos``.

    .. math::
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = (a + c) / k

    with a, c of ``moments``.  Erratum: the paper's eq. (11) has (a - c)/k; the proof drops the fourth moment of a
    Gaussian in eq. (36).

    Example:
        >>> x = torch.randn(100, 3)
        >>> GaussianSketch().apply(x, torch.tensor(7), 10).shape
        torch.Size([10, 3])

    References:
        D. Bershatsky et al., *Memory-Efficient Backpropagation through Large Linear Layers* (2022), eq. (5), (11).
    """

    name: ClassVar[str] = "gaussian"
    backends: ClassVar[tuple[str, ...]] = ("triton",)

    @property
    def bytes_per_entry(self) -> int:
        return 40

    def entries(self, seed: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        # Columns 2p and 2p + 1 are the two outputs of one Box-Muller pair, which reads words 2p and 2p + 1.
        first, last = start // 2, (stop + 1) // 2
        words = cell_words(seed, rows, torch.arange(2 * first, 2 * last, device=seed.device))
        unit = words.to(torch.float32).add_(0.5).mul_(2.0**-32)
        radius = unit[:, 0::2].log().mul_(-2.0).clamp_(min=0.0).sqrt_()
        angle = unit[:, 1::2].mul(2.0 * math.pi)
        normals = torch.stack([angle.cos().mul_(radius), angle.sin().mul_(radius)], dim=2).flatten(1)
        return normals[:, start - 2 * first : stop - 2 * first]

    def variance_of_moments(self, m: Moments, num_rows: int, sketch_size: int) -> Tensor:
        return (m.a + m.c) / sketch_size
