"""Rademacher sketch: dense random signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn.seeding import signs_of_words
from rmm_gnn.sketches.dense import EntrywiseSketch, cell_words
from rmm_gnn.sketches.moments import Moments


@dataclass(frozen=True)
class RademacherSketch(EntrywiseSketch):
    r"""Dense S with independent entries :math:`\pm 1/\sqrt{k}`; one hash gives 32 of them.

    .. math::
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = (a + c - 2d) / k

    with a, c, d of ``moments``: never above the Gaussian's.

    Example:
        >>> RademacherSketch().to_dense(5, 4, torch.tensor(0)).abs().unique()
        tensor([0.5000])

    References:
        D. Bershatsky et al., *Memory-Efficient Backpropagation through Large Linear Layers* (2022), section 2.2.
        The variance is not in the paper.
    """

    name: ClassVar[str] = "rademacher"
    backends: ClassVar[tuple[str, ...]] = ("triton",)

    @property
    def bytes_per_entry(self) -> int:
        return 12

    def entries(self, seed: Tensor, rows: Tensor, start: int, stop: int) -> Tensor:
        first, last = start // 32, (stop + 31) // 32
        words = cell_words(seed, rows, torch.arange(first, last, device=seed.device))
        return signs_of_words(words)[:, start - 32 * first : stop - 32 * first]

    def variance_of_moments(self, m: Moments, num_rows: int, sketch_size: int) -> Tensor:
        return (m.a + m.c - 2.0 * m.d) / sketch_size
