"""A sketch family that the library does not have: sparse random signs, several nonzeros in every row of S.

Run: python docs/examples/sparse_sign_sketch.py

The page "Adding a family" goes through this file step by step.  Its laws are tested by
``python -m pytest tests/sketches/test_conformance.py tests/sketches/test_statistics.py -k given
--sketch-file docs/examples/sparse_sign_sketch.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn import RMMConfig, Sketch
from rmm_gnn.nn import RMMTorchLinear
from rmm_gnn.seeding import Stream, derived_seed, hash_index, random_signs
from rmm_gnn.sketches import FAMILIES, Draw
from rmm_gnn.sketches.moments import Moments


@dataclass(frozen=True)
class SparseSignSketch(Sketch):
    r"""Cut the k columns of S into s parts; every row of S has one entry, of random place and sign, in each part.

    An entry is :math:`\pm 1/\sqrt{s}`, so that a row of S has the norm 1, and the product costs s B N additions.  In
    part t, of k_t columns, two rows share a column with probability 1/k_t, and

    .. math::
        \mathbb{E} \| X^T S S^T Y - X^T Y \|_F^2 = (a + c - 2d) \frac{1}{s^2} \sum_t \frac{1}{k_t}

    with a, c, d of ``moments``: (a + c - 2d)/k for equal parts, whatever s is.  More nonzeros do not lower it.

    Args:
        nonzeros: s; k where that is less.

    References:
        J. Nelson, H. Nguyen, *OSNAP: Faster Numerical Linear Algebra Algorithms via Sparser Subspace Embeddings*, 2013
        (the construction in blocks).  The variance is derived on the page "Theory".
    """

    name: ClassVar[str] = "sparse_sign"
    nonzeros: int = 2

    def __post_init__(self) -> None:
        if not isinstance(self.nonzeros, int) or self.nonzeros < 1:
            raise ValueError(f"'nonzeros' must be a positive whole number (got {self.nonzeros}). Give 2, for instance.")

    def parts(self, sketch_size: int) -> list[tuple[int, int]]:
        """Return first and end column of each part."""
        count = min(self.nonzeros, sketch_size)
        return [(part * sketch_size // count, (part + 1) * sketch_size // count) for part in range(count)]

    def entries(
        self, seed: Tensor, sketch_size: int, start: int, stop: int, dtype: torch.dtype
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, part by part, the columns and the values of the entries in rows [start, stop) of S."""
        parts = self.parts(sketch_size)
        rows = torch.arange(start, stop, device=seed.device)
        for number, (first, end) in enumerate(parts):
            # A seed for each part: places and signs are functions of (seed, part, row) and of nothing else.
            part_seed = derived_seed(seed, number)
            columns = first + (hash_index(part_seed, Stream.ENTRY_COLUMNS, rows) * (end - first) >> 32)
            yield columns, random_signs(part_seed, start, stop, dtype).mul_(len(parts) ** -0.5)

    def to_dense(
        self,
        num_rows: int,
        sketch_size: int,
        seed: Tensor,
        *,
        state: tuple[Tensor, ...] = (),
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:  # [B, k]
        dense = torch.zeros(num_rows, sketch_size, dtype=dtype, device=seed.device)
        for columns, values in self.entries(seed, sketch_size, 0, num_rows, dtype):
            dense.scatter_(1, columns.unsqueeze(1), values.unsqueeze(1))
        return dense

    def sketch_rows(self, matrix: Tensor, draw: Draw, start: int, stop: int) -> Tensor:  # [stop - start, N]
        num_rows, num_columns = matrix.shape
        dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
        # One row more than wanted: entries that belong to other blocks of the sketch end there.
        out = matrix.new_zeros((stop - start + 1, num_columns), dtype=dtype)
        # A tile of the matrix is there twice, converted and signed, and a row's places and signs take some bytes.
        height = max(1, draw.workspace_bytes // (2 * num_columns * dtype.itemsize + 96))
        for begin in range(0, num_rows, height):
            tile = matrix[begin : begin + height].to(dtype)
            for columns, values in self.entries(draw.seed, draw.sketch_size, begin, begin + tile.shape[0], dtype):
                inside = (columns >= start) & (columns < stop)
                places = torch.where(inside, columns - start, stop - start)
                out.index_add_(0, places, tile * values.unsqueeze(1))
        return out[:-1]

    def variance_of_moments(self, m: Moments, num_rows: int, sketch_size: int) -> Tensor:
        parts = self.parts(sketch_size)
        return (m.a + m.c - 2.0 * m.d) * (sum(1.0 / (end - first) for first, end in parts) / len(parts) ** 2)


# From here on `RMMConfig(sketch="sparse_sign")` knows it, and so do the operators that rebuild it from its settings.
FAMILIES[SparseSignSketch.name] = SparseSignSketch

# What `--sketch-file` runs the conformance suite on.
CASES = {"sparse_sign": SparseSignSketch(nonzeros=3)}


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(200, 8, dtype=torch.float64) + 1
    grad_output = x[:, :4] + torch.randn(200, 4, dtype=torch.float64)
    family, size = SparseSignSketch(nonzeros=3), 20
    errors = []
    for number in range(200):
        s = family.to_dense(200, size, torch.tensor(number), dtype=torch.float64)
        errors.append(float((x.T @ s @ s.T @ grad_output - x.T @ grad_output).square().sum()))
    measured, spread = torch.tensor(errors).mean(), torch.tensor(errors).std() / len(errors) ** 0.5
    closed = float(family.variance(x, grad_output, size))
    print(f"variance over {len(errors)} draws: {measured:.3g} +- {spread:.1g}, closed form: {closed:.3g}")
    assert abs(measured - closed) < 5 * spread

    layer = RMMTorchLinear(8, 4, config=RMMConfig(rate=0.1, sketch=family, codec="int8"))
    layer(x.float()).square().mean().backward()
    print(layer, "has a weight gradient of norm", round(float(layer.weight.grad.norm()), 2))


if __name__ == "__main__":
    main()
