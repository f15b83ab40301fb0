"""What is kept of a tensor is kept once, however many layers read it."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class KeptOnce:
    """Remembers, for as long as a tensor lives, what has been kept of it under a key.

    An entry is void once the tensor was changed in place.  While ``torch.compile`` traces, nothing is remembered: every
    layer keeps its own.
    """

    def __init__(self) -> None:
        self._entries: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def get_or_make(self, tensor: Tensor, key: Hashable, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return what is remembered of ``tensor`` under ``key``, or make it and remember it."""
        if torch.compiler.is_compiling():
            return make()
        entries = self._entries.setdefault(tensor, {})
        found = entries.get(key)
        if found is None or found[0] != tensor._version:
            # Detached: what is remembered must not keep the graph of the layer that made it.
            found = tensor._version, [kept.detach() for kept in make()]
            entries[key] = found
        return list(found[1])
