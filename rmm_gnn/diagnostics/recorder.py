"""Watches one forward pass: what is saved for backward, in which module, by which operator."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rmm_gnn.diagnostics.operators import OWN_PREFIX, CurrentFunction, operator_name
from rmm_gnn.diagnostics.report import LOSS, ROOT, SavedEntry
from rmm_gnn.diagnostics.storages import StorageKey, key_of, storages_of


@dataclass(eq=False)
class _Saved:
    """One tensor as autograd keeps it; lives exactly as long as the node that keeps it."""

    tensor: Tensor
    reader: _Reader


@dataclass(frozen=True)
class _Reader:
    """Who keeps a tensor."""

    module: str
    operator: str

    def __str__(self) -> str:
        return f"{self.module} {self.operator}"


@dataclass
class _Sum:
    """What one operator in one module keeps."""

    saved_bytes: int = 0
    num_storages: int = 0
    largest_bytes: int = 0
    largest: Tensor | None = None
    keys: list[StorageKey] = field(default_factory=list)

    def add(self, tensor: Tensor, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.saved_bytes += size
        self.num_storages += 1
        self.keys.append(key_of(storage))
        if size > self.largest_bytes:
            self.largest_bytes, self.largest = size, tensor


class Recorder:
    """Records what is saved while ``watch`` is entered; ``entries`` sums up what of it is still kept.

    Nothing is held here: a tensor whose graph is dropped is forgotten, and memory is what it is without the recorder.
    """

    def __init__(self) -> None:
        self._saved: list[weakref.ref[_Saved]] = []
        self._functions = CurrentFunction()
        self._modules = [LOSS]

    @contextmanager
    def watch(self, model: Module) -> Iterator[None]:
        """Record; what is saved outside of ``model`` belongs to the loss."""
        handles = []
        try:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(self._entering(name or ROOT), prepend=True))
                handles.append(module.register_forward_hook(self._leave, always_call=True))
            with torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack), self._functions:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _pack(self, tensor: Tensor) -> _Saved:
        operator = operator_name(self._functions.function, sys._getframe(1))
        # Detached where an operator's output leads back to the node that saves it, a cycle that would never be freed.
        # Others stay the objects they are: by them, layers that read one tensor find what is kept of it already.
        kept = tensor if tensor.grad_fn is None else tensor.detach()
        saved = _Saved(kept, _Reader(self._modules[-1], operator))
        self._saved.append(weakref.ref(saved))
        return saved

    def _entering(self, name: str) -> Callable[[Module, Any], None]:
        def enter(module: Module, args: Any) -> None:
            self._modules.append(name)

        return enter

    def _leave(self, module: Module, args: Any, output: Any) -> None:
        self._modules.pop()

    def entries(
        self, *, parameters: Collection[StorageKey], inputs: Collection[StorageKey]
    ) -> tuple[tuple[SavedEntry, ...], int, int]:
        """Sum up what is kept now, each storage where it was first saved.

        Args:
            parameters: Storages that the model holds anyway.
            inputs: Storages that the caller holds anyway.

        Returns:
            The entries, largest first, and the bytes saved of ``parameters`` and of ``inputs``.
        """
        kept = [saved for saved in (reference() for reference in self._saved) if saved is not None]
        sums: dict[_Reader, _Sum] = {}
        readers: dict[StorageKey, dict[_Reader, None]] = {}
        known: dict[StorageKey, int] = {}
        for saved in kept:
            for storage in storages_of(saved.tensor):
                key = key_of(storage)
                if key in parameters or key in inputs:
                    known[key] = storage.nbytes()
                elif storage.nbytes():
                    if key not in readers:
                        sums.setdefault(saved.reader, _Sum()).add(saved.tensor, storage)
                    readers.setdefault(key, {})[saved.reader] = None

        entries = [_entry(reader, found, readers) for reader, found in sums.items()]
        entries.sort(key=lambda entry: -entry.saved_bytes)
        of_parameters = sum(size for key, size in known.items() if key in parameters)
        return tuple(entries), of_parameters, sum(known.values()) - of_parameters


def _unpack(saved: _Saved) -> Tensor:
    return saved.tensor


def _entry(reader: _Reader, found: _Sum, readers: dict[StorageKey, dict[_Reader, None]]) -> SavedEntry:
    largest = found.largest
    others = {other: None for key in found.keys for other in readers[key] if other != reader}
    return SavedEntry(
        module=reader.module,
        operator=reader.operator,
        saved_bytes=found.saved_bytes,
        num_storages=found.num_storages,
        largest_shape=() if largest is None else tuple(largest.shape),
        largest_dtype="" if largest is None else str(largest.dtype).removeprefix("torch."),
        compressed=reader.operator.startswith(OWN_PREFIX),
        shared_with=tuple(str(other) for other in others),
    )
