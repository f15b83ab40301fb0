"""Entries of an ``.npz`` file without unpickling arbitrary objects.

A pickle names the callables that rebuild it.  The reader here knows six names, gives scipy's matrix class a
stand-in that runs no code, and checks what comes out before anything indexes with it.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np


class _CsrShell:
    """Takes the place of ``scipy.sparse.csr_matrix`` while unpickling: a bag of attributes."""


def _reconstruct_array(subtype: type, shape: object, dtype: object) -> np.ndarray:
    """NumPy's own entry point, for plain arrays only: the pickled state fills the array afterwards."""
    if subtype is not np.ndarray:
        raise pickle.UnpicklingError("only plain arrays are read")
    return np.ndarray.__new__(np.ndarray, (0,), np.dtype("b"))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct_array,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct_array,
    ("scipy.sparse.csr", "csr_matrix"): _CsrShell,
    ("scipy.sparse._csr", "csr_matrix"): _CsrShell,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and, as shells, CSR matrices; any other name is an UnpicklingError."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


@dataclass(frozen=True)
class Csr:
    """A compressed sparse row matrix whose parts have been checked."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    shape: tuple[int, int]

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
        size = np.asarray(shape).reshape(-1)
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


def read_entry(archive: zipfile.ZipFile, name: str) -> np.ndarray | Csr:
    """One entry: an array, or the sparse matrix boxed in a zero-dimensional object array.

    Args:
        archive: The open file.
        name: Entry without ``.npy``.

    Returns:
        The array or matrix.

    Raises:
        ValueError: When the entry is not a NumPy array, is refused by the restricted unpickler, or holds
            another kind of object.
        KeyError: When there is no such entry.
    """
    stream = io.BytesIO(archive.read(f"{name}.npy"))
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read_header:
        raise ValueError(f"'{name}' must be a .npy entry of version 1 or 2 (got {version}). Save it again.")
    if not read_header[version](stream)[2].hasobject:
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    try:
        value = RestrictedUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # a damaged or hostile pickle can raise anything while it is rebuilt
        raise ValueError(
            f"'{name}' must hold only NumPy arrays and CSR matrices, no other pickled objects "
            f"(got one that is refused: {error}). Do not load this file elsewhere unless you trust it."
        ) from error
    value = matrix_of(value.item() if isinstance(value, np.ndarray) and value.shape == () else value, name)
    if isinstance(value, Csr):
        return value
    raise ValueError(f"'{name}' must box one CSR matrix (got {type(value).__name__}). Save it again.")


def matrix_of(value: Any, name: str) -> Any:
    """What a `RestrictedUnpickler` returned, a shell of a CSR matrix checked and made one.

    Raises:
        ValueError: When its parts do not fit.
    """
    if not isinstance(value, _CsrShell):
        return value
    fields = vars(value)
    parts = {part: fields.get(part) for part in ("data", "indices", "indptr")}
    return Csr.checked(name, **parts, shape=fields.get("_shape", fields.get("shape")))
