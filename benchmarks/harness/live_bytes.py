"""Bytes that a forward pass leaves allocated: what backward needs, wherever a method keeps it."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.harness.measure import storages


class LiveBytes(TorchDispatchMode):
    """Watches every tensor made while it is in force, and tells which still live.

    Saved-tensor hooks see what is given to autograd to keep.  This sees also what closures, attributes and other hooks
    keep, such as the inputs of a checkpoint or a copy on the host, and no longer sees what was given up again.  Tensors
    that were there before (parameters, data) are not counted; memory that an operator keeps to itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self._born: dict[StorageWeakRef, tuple[int, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {StorageWeakRef(storage) for storage in _all_storages((args, kwargs))}
        out = func(*args, **kwargs)
        for storage in _all_storages(out):
            reference = StorageWeakRef(storage)
            # Views and results of in-place operations live in a storage that came in: born here before, or not at all.
            if reference not in given:
                self._born[reference] = storage.nbytes(), storage.device.type
        return out

    def read(self, device_type: str, *besides: Tensor) -> int:
        """Bytes alive now on a kind of device, those of ``besides`` (such as the loss) left out."""
        gc.collect()
        left_out = {StorageWeakRef(storage) for storage in _all_storages(besides)}
        return sum(
            size
            for reference, (size, device) in self._born.items()
            if device == device_type and reference not in left_out and not reference.expired()
        )


def _all_storages(tree: Any) -> list[torch.UntypedStorage]:
    return [storage for leaf in tree_leaves(tree) if isinstance(leaf, Tensor) for storage in storages(leaf)]
