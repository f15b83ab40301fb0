"""Storage in a floating-point type: as it came, or rounded to nearest bfloat16 / float16."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rmm_gnn.codecs.base import Codec

# Type of the storage of each name; None keeps the type that comes.
CAST_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class CastCodec(Codec):
    """Keeps the matrix in one floating-point type: 4, 2 or 2 bytes a value.

    Rounding to nearest is deterministic, so a bfloat16 sketch biases the weight gradient by a relative 2^-9 at most
    per entry, as bfloat16 activations themselves do.

    Args:
        name: Name in the registry.
        dtype: Type of the storage, or None to keep the type of the layer's input.
    """

    name: str  # type: ignore[misc]
    dtype: torch.dtype | None
    num_tensors = 1

    def empty(self, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        return [torch.empty(num_rows, num_columns, dtype=self.dtype or dtype, device=device)]

    def encode(self, block: Tensor, payload: list[Tensor], start: int, seed: Tensor, *, backend: str = "auto") -> None:
        payload[0][start : start + block.shape[0]].copy_(block)

    def adopt(self, matrix: Tensor, dtype: torch.dtype) -> list[Tensor] | None:
        return [matrix] if matrix.dtype == (self.dtype or dtype) and matrix.is_contiguous() else None

    def decode(
        self,
        payload: list[Tensor],
        start: int,
        stop: int,
        num_columns: int,
        dtype: torch.dtype,
        *,
        backend: str = "auto",
    ) -> Tensor:
        return payload[0][start:stop].to(dtype)

    def variance(self, matrix: Tensor) -> Tensor:
        """Zero: rounding to nearest is deterministic."""
        return torch.zeros_like(matrix)
