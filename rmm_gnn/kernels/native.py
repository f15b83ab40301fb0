"""Kernels in C for the CPU, where they were compiled when the package was installed."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of
from rmm_gnn.permutation import grid_sides

_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
# A thread takes longer to start than such a share of the entries takes.
_ENTRIES_PER_THREAD = 1 << 17


class Sketched(NamedTuple):
    """What one pass over a matrix gives.

    Attributes:
        rows: Rows of S^T M.
        sums: Column sums of the rows of M that these add up, without signs; None where they were not asked for.
        ones: The same rows of S^T 1; None where they were not asked for.
    """

    rows: Tensor
    sums: Tensor | None
    ones: Tensor | None


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
        sources = ctypes.c_char.in_dll(ctypes.CDLL(str(LIBRARY)), "rmm_sources")
        found = ctypes.string_at(ctypes.addressof(sources)).decode()
    except (OSError, ValueError) as error:  # it cannot be loaded, or says nothing
        found = str(error)
    if found != fingerprint():
        warnings.warn(
            "rmm_gnn's compiled kernels are of other sources or of another machine, and are not used. "
            "Run python -m rmm_gnn.kernels.building.",
            stacklevel=2,
        )
        return False
    return True


def takes(matrix: Tensor) -> bool:
    """Whether the kernels can read ``matrix``."""
    return matrix.device.type == "cpu" and matrix.dtype in _TYPES


@cache
def _library() -> ctypes.CDLL:
    from rmm_gnn.kernels.building import LIBRARY

    library = ctypes.CDLL(str(LIBRARY))
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    word, number = ctypes.c_uint32, ctypes.c_int
    library.rmm_count_sketch.argtypes = [
        pointer, number, size, size, pointer, number, size, size, word, word, size, size, size, ctypes.c_uint64,
        number, pointer, pointer, pointer,
    ]  # fmt: skip
    library.rmm_count_sketch.restype = number
    return library


def count_sketch(
    matrix: Tensor,  # [*, N]
    seed: Tensor,
    sketch_size: int,
    start: int,
    stop: int,
    *,
    rows: Tensor | None = None,  # [B]
    with_sums: bool = False,
) -> Sketched:
    """Return rows [start, stop) of S^T ``matrix``, or of that of some ``rows``.

    The permutation is made and read some hundred positions at a time; besides the result, memory for 6 sqrt(B) numbers
    and a row of sums for every thread is allocated.

    Args:
        matrix: float32, float64 or bfloat16 on the CPU, any strides.
        seed: Scalar int64 tensor.
        sketch_size: k.
        start: First bucket.
        stop: End of the buckets.
        rows: Row numbers that S is applied to, in this order; all if None.
        with_sums: Whether to return sums and ones.

    Raises:
        ValueError: If the kernels cannot read ``matrix``.
        MemoryError: If there is no memory.
    """
    if not takes(matrix):
        raise ValueError(
            f"'backend' must be one that takes {matrix.dtype} on {matrix.device.type} (got 'native'). "
            "Use backend='auto'."
        )
    num_rows, num_columns = count_of(matrix, rows), matrix.shape[1]
    dtype = accumulation_dtype(matrix.dtype)
    out = torch.empty(stop - start, num_columns, dtype=dtype)
    sums = torch.empty(num_columns, dtype=torch.float64) if with_sums else None
    ones = torch.empty(stop - start) if with_sums else None
    selected = None if rows is None else rows.contiguous()
    threads = min(torch.get_num_threads(), 1 + matrix.numel() // _ENTRIES_PER_THREAD)
    failed = _library().rmm_count_sketch(
        matrix.data_ptr(),
        _TYPES[matrix.dtype],
        *matrix.stride(),
        None if selected is None else selected.data_ptr(),
        selected is not None and selected.dtype == torch.int64,
        num_rows,
        num_columns,
        *grid_sides(num_rows),
        sketch_size,
        start,
        stop,
        int(seed),
        threads,
        out.data_ptr(),
        None if sums is None else sums.data_ptr(),
        None if ones is None else ones.data_ptr(),
    )
    if failed:
        raise MemoryError("There is no memory for the permutation of a sketch. Use smaller batches.")
    return Sketched(out, None if sums is None else sums.to(dtype), None if ones is None else ones.to(dtype))
