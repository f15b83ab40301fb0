"""What a codec is: how a kept matrix is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor


class Codec(ABC):
    """Stores a matrix of k rows as a fixed number of tensors and gives rows of it back."""

    name: ClassVar[str]
    num_tensors: ClassVar[int]

    @abstractmethod
    def empty(self, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Allocate the storage of a [num_rows, num_columns] matrix that came from values of type ``dtype``."""

    @abstractmethod
    def encode(self, block: Tensor, payload: list[Tensor], start: int, seed: Tensor) -> None:
        """Write ``block`` [rows, columns] into ``payload`` from row ``start`` on; ``seed`` serves random rounding."""

    @abstractmethod
    def decode(self, payload: list[Tensor], start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Return rows [start, stop) of the stored matrix as ``dtype``."""

    def num_bytes(self, num_rows: int, num_columns: int, dtype: torch.dtype) -> int:
        """Bytes of the storage of a [num_rows, num_columns] matrix: what ``empty`` allocates."""
        tensors = self.empty(num_rows, num_columns, dtype, torch.device("meta"))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
