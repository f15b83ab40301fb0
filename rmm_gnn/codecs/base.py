"""What a codec is: how a kept matrix is stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from rmm_gnn.codecs.norm_coding import NormCoding


class Codec(ABC):
    """Stores a matrix as a fixed number of tensors and gives rows of it back.

    What is read back equals the matrix, is rounded to nearest (the cast codecs), or is right on average (the stochastic
    ones): the codec's docstring says which.
    """

    name: ClassVar[str]
    num_tensors: ClassVar[int]
    # Whether what is read back depends on the seed.
    rounds_at_random: ClassVar[bool] = False

    @property
    def spec(self) -> str:
        """The name with its settings, such as ``int4:group_size=64``: what ``get_codec`` takes."""
        return self.name

    @abstractmethod
    def empty(self, num_rows: int, num_columns: int, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
        """Allocate the storage of a [num_rows, num_columns] matrix that came from values of type ``dtype``."""

    @abstractmethod
    def encode(self, block: Tensor, payload: list[Tensor], start: int, seed: Tensor, *, backend: str = "auto") -> None:
        """Write ``block`` [rows, columns] into ``payload`` from row ``start`` on; ``seed`` serves random rounding.

        Where a codec has more than one implementation, ``backend`` chooses.
        """

    def adopt(self, matrix: Tensor, dtype: torch.dtype) -> list[Tensor] | None:  # [B, N]
        """Return the storage of a matrix that came from values of type ``dtype``, if that is the matrix itself."""
        return None

    @abstractmethod
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
        """Return rows [start, stop) of the stored matrix as ``dtype`` [stop - start, num_columns], its own or a view.

        The caller must not write to it.
        """

    @abstractmethod
    def variance(self, matrix: Tensor) -> Tensor:  # [B, N] -> [B, N]
        """Return the variance of every entry of ``matrix`` as read back, over seeds."""

    @property
    def bits_of_rows(self) -> int | None:
        """Bits of a code, where the codes of a row share one offset and step; None for other storage."""
        return None

    def norm_coding(self, matrix: Tensor, backend: str = "auto") -> NormCoding | None:  # [B, N]
        """Return what normalises and codes such a matrix in one pass; None where that takes two."""
        return None

    def num_bytes(self, num_rows: int, num_columns: int, dtype: torch.dtype) -> int:
        """Bytes of the storage of a [num_rows, num_columns] matrix: what ``empty`` allocates."""
        tensors = self.empty(num_rows, num_columns, dtype, torch.device("meta"))
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def encode_matrix(self, matrix: Tensor, seed: Tensor) -> list[Tensor]:
        """Return the storage of the whole ``matrix`` [B, N]."""
        payload = self.empty(matrix.shape[0], matrix.shape[1], matrix.dtype, matrix.device)
        self.encode(matrix, payload, 0, seed)
        return payload


def row_tiles(num_rows: int, num_columns: int, tile_bytes: int, itemsize: int = 4) -> Iterator[tuple[int, int]]:
    """Cut [0, num_rows) into runs of rows of at most ``tile_bytes`` each (one row at least)."""
    height = max(1, tile_bytes // max(1, num_columns * itemsize))
    for start in range(0, num_rows, height):
        yield start, min(start + height, num_rows)
