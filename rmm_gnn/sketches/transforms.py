"""Orthonormal transforms in real arithmetic: given vectors, return chosen entries of their transform.

Each transform H [P, P] comes with the pattern of w_ij = P sum_p H_pi^2 H_pj^2, which is what the variance of a
subsampled transform depends on (see ``sors``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

# H_P is a Kronecker product of Hadamard matrices of this order: fewer passes than a butterfly per bit.
_RADIX = 64


@dataclass(frozen=True)
class WeightPattern:
    """w_ij = base + (number of ``plus`` maps with sigma(i) = j - number of ``minus`` maps with sigma(i) = j) / 2."""

    base: float
    plus: tuple[Tensor, ...] = ()
    minus: tuple[Tensor, ...] = ()


class Transform(ABC):
    """An orthonormal real transform of vectors of a given length."""

    # Transient float32-sized numbers for each entry of the padded input, input buffer included.
    buffers: int

    @abstractmethod
    def length(self, num_rows: int) -> int:
        """Return P, the length that ``num_rows`` entries are padded to with zeros."""

    @abstractmethod
    def select(self, vectors: Tensor, entries: Tensor) -> Tensor:  # [n, P], [k] -> [n, k]
        """Return the given entries of the transform of each vector."""

    @abstractmethod
    def pattern(self, length: int, device: torch.device) -> WeightPattern:
        """Return the weights w for length P."""


class Hadamard(Transform):
    """Walsh-Hadamard transform; every entry is +-P^-1/2, so w_ij = 1."""

    buffers = 2

    def length(self, num_rows: int) -> int:
        return 1 << max(0, num_rows - 1).bit_length()

    def select(self, vectors: Tensor, entries: Tensor) -> Tensor:
        count, length = vectors.shape
        done = 1
        while done < length:
            order = min(_RADIX, length // done)
            matrix = _hadamard_matrix(order, vectors.dtype, vectors.device)
            if done == 1:
                vectors = vectors.view(-1, order) @ matrix
            else:
                vectors = matrix @ vectors.view(-1, order, done)
            done *= order
        return vectors.view(count, length).index_select(1, entries)

    def pattern(self, length: int, device: torch.device) -> WeightPattern:
        return WeightPattern(1.0)


class Cosine(Transform):
    r"""DCT-II: :math:`H_{pi} = \sqrt{2/P} \cos(\pi p (2i + 1) / 2P)`, row 0 divided by :math:`\sqrt 2`."""

    buffers = 6

    def length(self, num_rows: int) -> int:
        return num_rows

    def select(self, vectors: Tensor, entries: Tensor) -> Tensor:
        length = vectors.shape[1]
        reordered = torch.cat([vectors[:, 0::2], vectors[:, 1::2].flip(1)], dim=1)
        spectrum = torch.fft.rfft(reordered, dim=1)
        # Entry P - p is minus the imaginary part of what entry p is the real part of.
        mirrored = entries > length // 2
        frequency = torch.where(mirrored, length - entries, entries)
        angle = frequency.to(vectors.dtype) * (-0.5 * math.pi / length)
        chosen = spectrum.index_select(1, frequency)
        real = chosen.real * angle.cos() - chosen.imag * angle.sin()
        imag = chosen.real * angle.sin() + chosen.imag * angle.cos()
        scale = torch.where(entries == 0, math.sqrt(1.0 / length), math.sqrt(2.0 / length)).to(vectors.dtype)
        return torch.where(mirrored, -imag, real) * scale

    def pattern(self, length: int, device: torch.device) -> WeightPattern:
        identity = torch.arange(length, device=device)
        return WeightPattern(1.0 - 1.0 / length, plus=(identity, identity.flip(0)))


class Hartley(Transform):
    r"""Real form of the DFT: :math:`H_{pi} = (\cos 2\pi pi/P + \sin 2\pi pi/P) / \sqrt P`, symmetric."""

    buffers = 6

    def length(self, num_rows: int) -> int:
        return num_rows

    def select(self, vectors: Tensor, entries: Tensor) -> Tensor:
        length = vectors.shape[1]
        spectrum = torch.fft.rfft(vectors, dim=1)
        mirrored = entries > length // 2
        chosen = spectrum.index_select(1, torch.where(mirrored, length - entries, entries))
        return (chosen.real + torch.where(mirrored, chosen.imag, -chosen.imag)) * length**-0.5

    def pattern(self, length: int, device: torch.device) -> WeightPattern:
        identity = torch.arange(length, device=device)
        mirror = (length - identity) % length
        if length % 2:
            return WeightPattern(1.0, plus=(identity,), minus=(mirror,))
        half = length // 2
        return WeightPattern(1.0, plus=(identity, (identity + half) % length), minus=(mirror, (mirror + half) % length))


TRANSFORMS: dict[str, Transform] = {"hadamard": Hadamard(), "dct": Cosine(), "dft": Hartley()}


def _hadamard_matrix(order: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    step = torch.full((2, 2), 2**-0.5, dtype=dtype, device=device)
    step[1, 1].neg_()
    matrix = torch.ones(1, 1, dtype=dtype, device=device)
    while matrix.shape[0] < order:
        matrix = torch.kron(matrix, step)
    return matrix
