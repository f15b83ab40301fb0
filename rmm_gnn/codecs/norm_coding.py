"""Coding of normalised columns in one pass over the matrix, with no normalised copy of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rmm_gnn.kernels import codes_native


@dataclass(frozen=True)
class NormCoding:
    """What normalisation along columns does with a coded ``(x - mean) * factor``, by kernels in C.

    Vectors are of the accumulation type, one number a column.

    Attributes:
        bits: Of a code.
        group_size: Columns that share offset and step; None for all.
    """

    bits: int
    group_size: int | None

    def encode(self, x: Tensor, mean: Tensor, factor: Tensor, payload: list[Tensor], seed: Tensor) -> None:
        """Write the codes of ``(x - mean) * factor``, x [B, N], into ``payload``."""
        codes, scales = payload
        codes_native.encode(
            x, codes, scales, seed, 0, bits=self.bits, group_size=self.group_size, mean=mean, factor=factor
        )

    def products(self, gradient: Tensor, payload: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the column sums of ``gradient`` [B, N], and those of its products with what was coded."""
        codes, scales = payload
        return codes_native.reduce_products(gradient, codes, scales, bits=self.bits, group_size=self.group_size)

    def gradient(
        self, gradient: Tensor, payload: list[Tensor], factor: Tensor, mean_gradient: Tensor, mean_product: Tensor
    ) -> Tensor:
        """Return ``(gradient - mean_gradient - coded * mean_product) * factor`` in the type of ``gradient`` [B, N]."""
        codes, scales = payload
        return codes_native.norm_gradient(
            gradient,
            codes,
            scales,
            factor,
            mean_gradient,
            mean_product,
            bits=self.bits,
            group_size=self.group_size,
        )
