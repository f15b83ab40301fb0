"""What is kept of a tensor is kept once, however many layers read it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils.weak import WeakIdKeyDictionary, WeakIdRef

from rmm_gnn.config import RMMConfig

# Kept tensors that a backward pass has read, for as long as they live.
_READ: WeakIdKeyDictionary = WeakIdKeyDictionary()


def mark_read(kept: list[Tensor]) -> None:
    """Note in backward that these were read: a later forward pass must not find them."""
    if not torch.compiler.is_compiling():
        for tensor in kept:
            _READ[tensor] = True


# Outputs of products for which nothing new is kept, for as long as they live.
_OF_HELD: WeakIdKeyDictionary = WeakIdKeyDictionary()


def note_of_held(out: Tensor) -> Tensor:
    """Note that ``out`` is a product whose input the caller keeps in any case, whatever its layer's config says."""
    _OF_HELD[out] = True
    return out


def is_of_held(out: Tensor) -> bool:
    """Whether ``note_of_held`` noted it."""
    return out in _OF_HELD


# Configs of products that a mode made, and the rows that it sketched, for as long as their outputs live.
_CONFIGS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def note_config(out: Tensor, config: RMMConfig | None, row_mask: Tensor | None = None) -> Tensor:
    """Note that ``out`` is a product whose input is kept by ``config``, or in part, which its caller does not know of.

    Args:
        out: The product.
        config: What is kept; None where the caller has said it.
        row_mask: The rows that are sketched; None for all.
    """
    if not torch.compiler.is_compiling():
        _CONFIGS[out] = config, row_mask
    return out


def config_of(out: Tensor) -> RMMConfig | None:
    """The config that ``note_config`` noted; None where it noted none."""
    return _CONFIGS.get(out, (None, None))[0]


def row_mask_of(out: Tensor) -> Tensor | None:
    """The mask that ``note_config`` noted; None where it noted none."""
    return _CONFIGS.get(out, (None, None))[1]


def identity_of(tensor: Tensor) -> Hashable:
    """Return a key for ``tensor`` with the values that it has now, which does not hold it."""
    return WeakIdRef(tensor), tensor._version


class KeptOnce:
    """Finds what is being kept of a tensor already, under a key, so that it is not kept twice.

    Nothing is held here.  An entry lasts as long as autograd keeps the tensors in it; it is void once a backward pass
    has read them (``mark_read``) or its tensor was changed in place.  So the next step makes, and rounds, anew, also
    where it reads the very same tensor and somebody still holds the graph of the step before.  While ``torch.compile``
    traces, nothing is remembered, and every layer keeps its own.
    """

    def __init__(self) -> None:
        self._entries: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def get_or_make(self, tensor: Tensor, key: Hashable, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return what is being kept of ``tensor`` under ``key``, or make it and remember it.

        The result has to be given to an operator as an input and saved by it: an output that an operator saves is
        another object to autograd, and would not be found again.
        """
        if torch.compiler.is_compiling() or tensor.is_inference():
            return make()
        entries = self._entries.setdefault(tensor, {})
        version, references = entries.get(key, (None, []))
        found = [reference() for reference in references]
        if version == tensor._version and all(kept is not None and kept not in _READ for kept in found):
            return found
        made = make()
        entries[key] = tensor._version, [weakref.ref(kept) for kept in made]
        return made


class Reading(KeptOnce):
    """The sketches of one tensor that several weights, which read it once each, share."""

    def __init__(self) -> None:
        super().__init__()
        self._readers: set[Hashable] = set()
        self._seed: Tensor | None = None

    def join(self, reader: Hashable) -> bool:
        """Count ``reader`` in, if it has not read the tensor yet."""
        new = reader not in self._readers
        self._readers.add(reader)
        return new

    def seed(self, drawn: Tensor) -> Tensor:
        """Return the seed that the first reader drew, which is ``drawn`` for the first.

        With it, readers have one S also where they cannot share one sketch: while a checkpointed block runs, autograd
        keeps nothing that the next layer could find.
        """
        if self._seed is None:
            self._seed = drawn
        return self._seed


class SharedSketches:
    """Finds for layers that read one tensor the sketch which the first of them made; holds no sketch itself.

    One object serves the layers that may share.  A copy, or what is unpickled, is a new one, and of a copied model all
    layers have the same new one.
    """

    def __init__(self) -> None:
        # Made when it is needed: torch.compile, where it traces the making of this object, cannot trace that of these.
        self._readings: WeakIdKeyDictionary | None = None

    def __reduce__(self) -> tuple[type[SharedSketches], tuple[()]]:
        return SharedSketches, ()

    def of(self, x: Tensor, weight: Tensor) -> Reading | None:
        """Return where the sketches are that other weights made of ``x`` since ``weight`` read it last.

        A weight that reads one tensor again, as in the next step or in every step of a loop, gets a fresh S.  None
        where readers cannot be told apart: weights that are computed anew at every call.  Neither does traced code
        share, which could not look tensors up.
        """
        owner = weight if weight._base is None else weight._base
        if torch.compiler.is_compiling() or not isinstance(owner, Parameter):
            return None
        reader = id(owner), weight.storage_offset(), weight.shape, weight.stride()
        if self._readings is None:
            self._readings = WeakIdKeyDictionary()
        reading: Reading | None = self._readings.get(x)
        if reading is None or not reading.join(reader):
            reading = self._readings[x] = Reading()
            reading.join(reader)
        return reading
