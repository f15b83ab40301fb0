"""What is kept of a tensor is kept once, however many layers read it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary


class KeptOnce:
    """Finds what is being kept of a tensor already, under a key, so that it is not kept twice.

    Nothing is held here.  An entry lasts as long as autograd keeps the tensors in it, that is until backward has used
    them, and it is void once its tensor was changed in place: the next step makes, and rounds, anew, also where it
    reads the very same tensor.  While ``torch.compile`` traces, nothing is remembered: every layer keeps its own.
    """

    def __init__(self) -> None:
        self._entries: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def get_or_make(self, tensor: Tensor, key: Hashable, make: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Return what is being kept of ``tensor`` under ``key``, or make it and remember it.

        The result has to be given to an operator as an input and saved by it: an output that an operator saves is
        another object to autograd, and would not be found again.
        """
        if torch.compiler.is_compiling():
            return make()
        entries = self._entries.setdefault(tensor, {})
        version, references = entries.get(key, (None, []))
        found = [reference() for reference in references]
        if version == tensor._version and all(kept is not None for kept in found):
            return found
        made = make()
        entries[key] = tensor._version, [weakref.ref(kept) for kept in made]
        return made
