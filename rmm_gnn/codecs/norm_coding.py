"""Coding of normalised columns in one pass over the matrix, with no normalised copy of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class NormCoding:
    """What normalisation along columns does with a coded x_hat = ``(x - mean) * inv_std``, by kernels.

    Vectors are of the accumulation type, one number a column.

    Attributes:
        kernels: The module that does it.
        bits: Of a code.
        group_size: Columns that share offset and step; None for all.
    """

    kernels: Any
    bits: int
    group_size: int | None

    def encode(self, x: Tensor, mean: Tensor, inv_std: Tensor, payload: list[Tensor], seed: Tensor) -> None:
        """Write the codes of x_hat, x [B, N], into ``payload``."""
        self.kernels.encode_normalized(x, mean, inv_std, *payload, seed, 0, bits=self.bits, group_size=self.group_size)

    def reduce(self, grad_output: Tensor, payload: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the column sums of ``grad_output`` [B, N], and those of its products with x_hat as read back."""
        sums, products = self.kernels.reduce(grad_output, *payload, bits=self.bits, group_size=self.group_size)
        return sums, products

    def grad_input(
        self, grad_output: Tensor, payload: list[Tensor], scale: Tensor, mean_grad: Tensor, mean_product: Tensor
    ) -> Tensor:
        """Return ``(grad_output - mean_grad - x_hat * mean_product) * scale`` in the type of ``grad_output`` [B, N]."""
        found: Tensor = self.kernels.grad_input(
            grad_output,
            *payload,
            scale,
            mean_grad,
            mean_product,
            bits=self.bits,
            group_size=self.group_size,
        )
        return found
