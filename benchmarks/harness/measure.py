"""Three measurements of a training step: bytes kept for backward, peak memory, time."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch_geometric.nn import MessagePassing

from rmm_gnn.diagnostics.process_peak import reset_high_water_mark, status_bytes


@dataclass(frozen=True)
class SavedBytes:
    """Bytes kept between forward and backward, each storage counted once, where it was first kept."""

    convolutions: int
    total: int


def measure_saved_bytes(model: nn.Module, forward: Callable[[], Tensor], exclude: Iterable[Tensor]) -> SavedBytes:
    """Run one forward and backward pass and count what autograd keeps through its saved-tensor hooks.

    Parameters, buffers and `exclude` are not counted.  Whatever a function hides from the hooks (attributes
    of its context, closures) is not seen.

    Args:
        model: Layers that derive from PyG's ``MessagePassing`` are its convolutions.
        forward: Runs the model in training mode and returns the scalar loss.  Gradients, random state and
            running statistics change as in any step: pass a copy of the model where that matters.
        exclude: The data set's tensors.

    Returns:
        The bytes.
    """
    by_convolutions = 0
    depth = 0

    def count(num_bytes: int) -> None:
        nonlocal by_convolutions
        by_convolutions += num_bytes if depth else 0

    def enter(module: nn.Module, args: object) -> None:
        nonlocal depth
        depth += 1

    def leave(module: nn.Module, args: object, output: object) -> None:
        nonlocal depth
        depth -= 1

    convolutions = [module for module in model.modules() if isinstance(module, MessagePassing)]
    handles = [module.register_forward_pre_hook(enter) for module in convolutions]
    handles += [module.register_forward_hook(leave, always_call=True) for module in convolutions]
    try:
        with SavedStorages([*model.parameters(), *model.buffers(), *exclude], count) as saved:
            loss = forward()
        result = SavedBytes(by_convolutions, saved.total_bytes)
        # Also a warm-up: libraries allocate their workspaces here and not during the measured run.
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    return result


class SavedStorages(saved_tensors_hooks):
    """Counts what is given to autograd to keep while this is in force, each storage once.

    Args:
        exclude: Tensors that are there in any case.
        count: Called with the bytes of every new storage, where it is first kept.
    """

    def __init__(self, exclude: Iterable[Tensor], count: Callable[[int], None] = lambda num_bytes: None) -> None:
        ignored = {storage.data_ptr() for tensor in exclude for storage in storages(tensor)}
        # A weak reference keeps a storage's identity from being given out again, but not its memory from being freed.
        self._kept: dict[StorageWeakRef, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            for storage in storages(tensor):
                reference = StorageWeakRef(storage)
                if storage.data_ptr() not in ignored and reference not in self._kept:
                    self._kept[reference] = storage.nbytes()
                    count(storage.nbytes())
            return tensor

        super().__init__(pack, lambda tensor: tensor)

    def __enter__(self) -> SavedStorages:
        super().__enter__()
        return self

    @property
    def total_bytes(self) -> int:
        """The sum so far."""
        return sum(self._kept.values())


def storages(tensor: Tensor) -> Iterator[torch.UntypedStorage]:
    """The storages behind a tensor; a sparse one, or a subclass that wraps others, has several."""
    wrapper: Any = tensor
    if is_traceable_wrapper_subclass(wrapper):
        names, _ = wrapper.__tensor_flatten__()
        for name in names:
            yield from storages(getattr(wrapper, name))
    elif tensor.layout == torch.strided:
        yield tensor.untyped_storage()
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()):
            yield part.untyped_storage()
    elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        for part in (tensor.ccol_indices(), tensor.row_indices(), tensor.values()):
            yield part.untyped_storage()
    else:
        for part in (tensor._indices(), tensor._values()):
            yield part.untyped_storage()


class PeakMemory:
    """Peak memory between `start` and `read_bytes`; `definition` says what is counted on this machine.

    Args:
        device: Where the run takes place.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start_bytes: int | None = None
        if device.type == "cuda":
            self.definition = "largest torch.cuda.max_memory_allocated, data and parameters included"
        elif reset_high_water_mark():
            self.definition = "rise of the process's resident set over the run (VmHWM)"
        else:
            self.definition = "not available on this system"

    def start(self) -> None:
        """Forget earlier peaks."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # so that pages freed by the run before count again
        self._start_bytes = status_bytes("VmRSS") if reset_high_water_mark() else None

    def read_bytes(self) -> int | None:
        """The peak since `start`, or None where it cannot be had."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = status_bytes("VmHWM")
        if self._start_bytes is None or peak is None:
            return None
        return max(0, peak - self._start_bytes)


@contextlib.contextmanager
def stopwatch(device: torch.device, into_s: list[float]) -> Iterator[None]:
    """Append the seconds the block took, work queued on the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    yield
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    into_s.append(time.perf_counter() - start)
