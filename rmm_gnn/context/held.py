"""Tensors that the caller keeps in any case: products that read them, or dropout of them, need to keep nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

import rmm_gnn.functional as lean
from rmm_gnn.functional.attention import is_kept_by_attention
from rmm_gnn.functional.held import held_addmm, held_linear
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sharing import note_of_held


class Dropped(NamedTuple):
    """How a tensor was made of one that is held.

    Attributes:
        source: The held tensor.
        p: Probability of dropout.
        seed: Of its mask.
        versions: Of the tensor made and of the source; if one has another version, it was changed since.
    """

    source: Tensor
    p: float
    seed: Tensor
    versions: tuple[int, int]


class HeldInputs:
    """Knows what the caller holds, and what dropout made of it.

    Args:
        tensors: What is held.
    """

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        # Autograd keeps no tensor of inference mode; a sketch of one, it does.
        self._tensors = tuple(tensor for tensor in tensors if not tensor.is_inference())
        self._dropped: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def has(self, x: Tensor) -> bool:
        """Whether ``x`` is held, under this or another name of the same memory."""
        return any(x is tensor or _same_memory(x, tensor) for tensor in self._tensors)

    def note(self, out: Tensor, source: Tensor, p: float, seed: Tensor) -> None:
        """Remember, while ``out`` lives, that it is dropout of ``source``."""
        if out.is_inference():
            return  # has no version, and no product of it a gradient
        self._dropped[out] = Dropped(source, p, seed, (out._version, source._version))

    def origin(self, x: Tensor) -> dict[str, Any] | None:
        """What a product has to keep in the place of ``x``; empty where x is held, None where it is of no such origin.

        Of dropout of what is held: the source, the probability and the seed, if neither tensor was changed since.
        """
        if self.has(x):
            return {}
        made = self._dropped.get(x)
        if made is None or made.versions != (x._version, made.source._version):
            return None
        return {"source": made.source, "p": made.p, "seed": made.seed}


def linear_of_held(held: HeldInputs | None, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    """The exact product where ``x`` is held, or dropout of what is, or attention keeps it; None elsewhere."""
    origin = _origin(held, x)
    return None if origin is None else note_of_held(held_linear(x, weight, bias, **origin))


def addmm_of_held(
    held: HeldInputs | None, input: Tensor, mat1: Tensor, mat2: Tensor, beta: float, alpha: float
) -> Tensor | None:
    """The exact ``addmm`` where ``mat1`` is held, or dropout of what is, or attention keeps it; None elsewhere."""
    origin = _origin(held, mat1)
    return None if origin is None else note_of_held(held_addmm(input, mat1, mat2, beta=beta, alpha=alpha, **origin))


def dropout_of_held(
    held: HeldInputs, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, backend: str = "auto"
) -> Tensor | None:
    """Dropout of ``x`` where it is held, noted; None elsewhere, and where dropout does nothing."""
    is_number = isinstance(p, int | float)  # of anything else, dropout has to say what is wrong
    if not training or inplace or not is_number or not 0 < p < 1 or x.numel() == 0 or not held.has(x):
        return None
    seed = draw_seed(x)
    out = lean.dropout(x, p, seed=seed, backend=backend)
    held.note(out, x, float(p), seed)
    return out


def _origin(held: HeldInputs | None, x: Tensor) -> dict[str, Any] | None:
    origin = None if held is None else held.origin(x)
    return {} if origin is None and is_kept_by_attention(x) else origin


def _same_memory(x: Tensor, other: Tensor) -> bool:
    plain = x.layout == other.layout == torch.strided and x.device == other.device
    return plain and x.dtype == other.dtype and x.is_set_to(other)
