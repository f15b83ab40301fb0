"""Kernels in C for the CPU, where they were compiled when the package was installed."""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

# Their numbers in C.
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
# A forked process has none of the threads that its parent had, whether or not it was the first to load the library.
_PROCESS = os.getpid()
# A smaller share of the entries is not worth a thread.
_ENTRIES_PER_THREAD = 1 << 15

_SIZE, _POINTER, _NUMBER, _WORD = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32
_SEED, _REAL = ctypes.c_uint64, ctypes.c_double
# Where a coded matrix lies: codes, scales, whether these are wide, bits, columns, columns of a group.
_CODED = [_POINTER, _POINTER, _NUMBER, _NUMBER, _SIZE, _SIZE]
_SIGNATURES: dict[str, list[Any]] = {
    "rmm_count_sketch": [
        _POINTER, _NUMBER, _SIZE, _SIZE, _SIZE, _POINTER, _NUMBER, _SIZE, _SIZE, _WORD, _WORD, _SIZE, _SIZE, _SIZE,
        _SEED, _NUMBER, _POINTER, _POINTER, _POINTER,
    ],
    "rmm_encode": [
        _POINTER, _NUMBER, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, _SIZE, _SEED, *_CODED, _NUMBER,
    ],
    "rmm_decode": [*_CODED, _SIZE, _POINTER, _NUMBER, _NUMBER],
    "rmm_norm_reduce": [*_CODED, _SIZE, _POINTER, _NUMBER, _POINTER, _NUMBER],
    "rmm_norm_gradient": [
        *_CODED, _SIZE, _POINTER, _NUMBER, _POINTER, _POINTER, _POINTER, _POINTER, _NUMBER,
    ],
    "rmm_relu": [_POINTER, _NUMBER, _SIZE, _NUMBER, _REAL, _REAL, _SEED, _WORD, _POINTER, _POINTER, _NUMBER],
    "rmm_masked_grad": [_POINTER, _NUMBER, _SIZE, _POINTER, _REAL, _REAL, _POINTER, _NUMBER],
    "rmm_dropout": [_POINTER, _NUMBER, _SIZE, _SIZE, _REAL, _SEED, _WORD, _POINTER, _NUMBER],
}  # fmt: skip

NOT_BUILT = (
    "backend 'native' needs kernels that are compiled on installation, where there is a C compiler. Install one and "
    "run python -m rmm_gnn.kernels.building, or use backend='auto'."
)


@cache
def is_built() -> bool:
    """Whether the library was there, compiled from the sources beside it, when it was first asked for.

    An update of the sources in place does not compile them; what was compiled before is not used then, with a warning.
    """
    # Imported here, so that `python -m rmm_gnn.kernels.building` does not find itself imported.
    from rmm_gnn.kernels.building import LIBRARY, fingerprint

    if not LIBRARY.exists():
        return False
    try:
        expected: str | None = fingerprint()
        sources = ctypes.c_char.in_dll(ctypes.CDLL(str(LIBRARY)), "rmm_sources")
        found: str | None = ctypes.string_at(ctypes.addressof(sources)).decode()
    except (OSError, ValueError):  # it cannot be loaded or says nothing, or its sources are gone
        found = expected = None
    if found is None or found != expected:
        warnings.warn(
            "rmm_gnn's compiled kernels are of other sources or of another machine, and are not used. "
            "Run python -m rmm_gnn.kernels.building.",
            stacklevel=2,
        )
        return False
    return True


def takes(matrix: Tensor, dtype: torch.dtype | None = None) -> bool:
    """Whether the kernels can read ``matrix``: a plain tensor on the CPU, of a type that they know, or with ``dtype``.

    They know nothing of autograd, nor of what wraps a tensor.
    """
    return (
        (dtype or matrix.dtype) in TYPES
        and matrix.device.type == "cpu"
        and type(matrix) in (Tensor, Parameter)
        and not matrix.is_neg()
        and not (matrix.requires_grad and torch.is_grad_enabled())
        and not torch._C._functorch.is_functorch_wrapped_tensor(matrix)
    )


@cache
def library() -> ctypes.CDLL:
    """Return the functions in C.

    Raises:
        ImportError: If they are not compiled.
    """
    from rmm_gnn.kernels.building import LIBRARY

    if not is_built():
        raise ImportError(NOT_BUILT)
    library = ctypes.CDLL(str(LIBRARY))
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, ctypes.c_int
    library.rmm_use_threads_of.argtypes = [ctypes.c_void_p]
    parallel = _threads_of_torch() if os.getpid() == _PROCESS else None
    if parallel is not None:
        library.rmm_use_threads_of(parallel)
        # They are not there in a forked process.
        os.register_at_fork(after_in_child=lambda: library.rmm_use_threads_of(None))
    return library


def _threads_of_torch() -> int | None:
    """Return the address of ``GOMP_parallel`` in the OpenMP library that torch brought; None without one."""
    folder = Path(torch.__file__).parent
    # Where its wheels have it: for x86 in the package, for ARM beside it.
    for path in sorted([*folder.glob("lib/libgomp*"), *folder.parent.glob("torch.libs/libgomp*")]):
        try:
            return ctypes.cast(ctypes.CDLL(str(path)).GOMP_parallel, ctypes.c_void_p).value
        except (OSError, AttributeError):
            continue
    return None


def check_taken(matrix: Tensor) -> None:
    """Check that the kernels can read ``matrix``.

    Raises:
        ValueError: If they cannot.
    """
    if not takes(matrix):
        raise ValueError(
            f"'backend' must be one that takes {matrix.dtype} on {matrix.device.type} (got 'native', which is for "
            "plain float tensors on the CPU, without a gradient). Use backend='auto'."
        )


def pointer(tensor: Tensor | None) -> int | None:
    """Where the entries of ``tensor`` lie; None for none."""
    return None if tensor is None else tensor.data_ptr()


def threads_for(num_entries: int, most: int) -> int:
    """How many threads, at least one and not more than ``most``, to spread so many entries over."""
    return max(1, min(torch.get_num_threads(), most, 1 + num_entries // _ENTRIES_PER_THREAD))
