"""Which tensors an object holds, and which storages stand behind them."""

from __future__ import annotations

import functools
import inspect
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# Devices may use the same addresses.
StorageKey = tuple[torch.device, int]

_CONTAINERS = (list, tuple, set, frozenset, deque)
# Their attributes lead to whole programs, not to the data of one object.
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


def storages_of(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """Yield the storages behind a tensor; a sparse one, or a subclass that wraps others, has several.

    Tensors without storage of their own (layouts of oneDNN) yield none.
    """
    wrapper: Any = tensor
    if is_traceable_wrapper_subclass(wrapper):
        names, _ = wrapper.__tensor_flatten__()
        # Among the parts of a distributed tensor is the mesh that it is spread over.
        parts = [part for part in (getattr(wrapper, name) for name in names) if isinstance(part, Tensor)]
    elif tensor.layout == torch.strided:
        yield tensor.untyped_storage()
        return
    elif tensor.layout == torch.sparse_coo:
        parts = [tensor._indices(), tensor._values()]
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        parts = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    else:
        parts = []
    for part in parts:
        yield from storages_of(part)


class StorageSizes(dict[StorageKey, int]):
    """Bytes of each storage behind the tensors, once however many of them share it; empty ones are left out.

    An address means one storage only as long as that lives, so the storages live as long as this does; the tensors
    need not.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._held = [storage for tensor in tensors for storage in storages_of(tensor) if storage.nbytes()]
        super().__init__((key_of(storage), storage.nbytes()) for storage in self._held)


def key_of(storage: torch.UntypedStorage) -> StorageKey:
    """What tells a storage from every other one alive."""
    return storage.device, storage.data_ptr()


def tensors_in(*objects: Any) -> Iterator[Tensor]:
    """Yield every tensor in containers and in attributes of objects, however deep, each once.

    Finds the tensors of a graph object, a sparse matrix class or a module (parameters, buffers, caches), and what
    tensor subclasses carry beside their values.  Iterators are not consumed, properties not evaluated.
    """
    waiting = list(objects)
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _OPAQUE):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, _CONTAINERS):
            waiting.extend(item)
        waiting.extend(getattr(item, "__dict__", {}).values())


def captured_by(function: Callable[..., Any] | None) -> list[Any]:
    """What a function brings along: arguments bound to it, variables of its closure, globals that it names."""
    if isinstance(function, functools.partial):
        return [*function.args, function.keywords, *captured_by(function.func)]
    if isinstance(function, types.MethodType):
        return [function.__self__, *captured_by(function.__func__)]
    if isinstance(function, types.FunctionType):
        variables = inspect.getclosurevars(function)
        return [*variables.nonlocals.values(), *variables.globals.values(), function.__defaults__]
    return [function]
