"""Pickles of arrays, CSR matrices and dictionaries of lists, without running what a pickle asks for.

A pickle names the callables that rebuild it.  The reader here knows a few names, gives classes stand-ins that run no
code, and checks what comes out before anything indexes with it.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from dataclasses import dataclass
from typing import IO, Any

import numpy as np


class CsrShell:
    """Takes the place of ``scipy.sparse.csr_matrix`` while unpickling: a bag of attributes."""


class _ArrayName:
    """Takes the place of ``numpy.ndarray``, which called with a shape would hand out memory that nobody filled."""


def _reconstruct_array(subtype: type, shape: object, dtype: object) -> np.ndarray:
    """NumPy's own entry point, for plain arrays only: the pickled state fills the array afterwards."""
    if subtype is not _ArrayName:
        raise pickle.UnpicklingError("only plain arrays are read")
    return np.ndarray.__new__(np.ndarray, (0,), np.dtype("b"))


def _reconstruct_csr(kind: type, base: object, state: object) -> CsrShell:
    """How the oldest protocols make an object of a class."""
    if kind is not CsrShell or base is not object or state is not None:
        raise pickle.UnpicklingError("only CSR matrices are rebuilt so")
    return CsrShell()


def _encoded(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in the protocols of Python 2."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("only bytes are encoded")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How the protocols of Python 2 write the data of an empty array."""
    return b""


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _ArrayName,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct_array,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct_array,
    ("scipy.sparse.csr", "csr_matrix"): CsrShell,
    ("scipy.sparse._csr", "csr_matrix"): CsrShell,
    ("collections", "defaultdict"): defaultdict,
    ("_codecs", "encode"): _encoded,
    ("copy_reg", "_reconstructor"): _reconstruct_csr,
    ("__builtin__", "bytes"): _no_bytes,
    **{(module, "list"): list for module in ("builtins", "__builtin__")},
    **{(module, "object"): object for module in ("builtins", "__builtin__")},
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_pickle(stream: IO[bytes], name: str) -> Any:
    """The one object of a pickle; a CSR matrix comes as a ``CsrShell`` whose parts nobody has checked.

    Args:
        stream: Where the pickle lies.
        name: What messages call it.

    Returns:
        The object.

    Raises:
        ValueError: When it is damaged, or asks for anything but arrays, CSR matrices, lists and dictionaries.
    """
    try:
        return _RestrictedUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # a damaged or hostile pickle can raise anything while it is rebuilt
        raise ValueError(
            f"'{name}' must hold only NumPy arrays and CSR matrices, no other pickled objects "
            f"(got one that is refused: {error}). Do not load this file elsewhere unless you trust it."
        ) from error


@dataclass(frozen=True)
class Csr:
    """A compressed sparse row matrix whose parts have been checked."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

    @classmethod
    def of_shell(cls, name: str, shell: CsrShell) -> Csr:
        """The matrix behind what was unpickled, checked as ``checked`` does."""
        fields = vars(shell)
        parts = {part: fields.get(part) for part in ("data", "indices", "indptr")}
        return cls.checked(name, **parts, shape=fields.get("_shape", fields.get("shape")))

    @classmethod
    def checked(cls, name: str, data: Any, indices: Any, indptr: Any, shape: Any) -> Csr:
        """Check every part, so that later code may index without looking.

        Args:
            name: What messages call the matrix.
            data: Values [nnz], finite numbers.
            indices: Column numbers [nnz].
            indptr: Where each row starts [rows + 1].
            shape: Rows and columns.

        Returns:
            The matrix.

        Raises:
            ValueError: When a part does not fit.
        """
        parts = {"data": (data, "biuf"), "indices": (indices, "iu"), "indptr": (indptr, "iu")}
        for part, (array, kinds) in parts.items():
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in kinds:
                raise ValueError(
                    f"'{name}' must have a numeric vector '{part}' (got {type(array).__name__}). Check the file."
                )
        size = np.asarray(shape if isinstance(shape, (tuple, list, np.ndarray)) else ()).reshape(-1)
        if size.shape != (2,) or size.dtype.kind not in "iu" or (size < 0).any():
            raise ValueError(f"'{name}' must have two sizes (got {shape!r}). Check the file.")
        rows, columns = int(size[0]), int(size[1])
        starts = indptr.astype(np.int64)
        if len(starts) != rows + 1 or starts[0] != 0 or starts[-1] != len(indices) or (np.diff(starts) < 0).any():
            raise ValueError(
                f"'{name}' must have an indptr that rises from 0 to {len(indices)} over {rows} rows "
                f"(got {len(starts)} entries). Check the file."
            )
        if len(data) != len(indices):
            raise ValueError(
                f"'{name}' must have as many values as indices (got {len(data)} and {len(indices)}). Check the file."
            )
        if len(indices) and (int(indices.min()) < 0 or int(indices.max()) >= columns):
            raise ValueError(
                f"'{name}' must have column numbers in [0, {columns}) (got {indices.min()} to "
                f"{indices.max()}). Check the file."
            )
        if not np.isfinite(data).all():
            raise ValueError(f"'{name}' must have finite values (got inf or nan). Check the file.")
        return cls(data, indices.astype(np.int64), starts, (rows, columns))
