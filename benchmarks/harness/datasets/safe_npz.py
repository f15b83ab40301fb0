"""Entries of an ``.npz`` file: none is unpickled without restriction, none unpacks to more than memory is meant for."""

from __future__ import annotations

import io
import zipfile
from math import prod

import numpy as np

from benchmarks.harness.datasets.safe_pickle import Csr, CsrShell, read_pickle

# Of an entry unpacked. Dense, the features of Coauthor Physics (34,493 x 8,415), a large such graph, are 1.2 GB.
MAX_BYTES = 8 * 2**30


def read_entry(archive: zipfile.ZipFile, name: str) -> np.ndarray | Csr:
    """One entry: an array, or the sparse matrix boxed in a zero-dimensional object array.

    Args:
        archive: The open file.
        name: Entry without ``.npy``.

    Returns:
        The array or matrix.

    Raises:
        ValueError: When the entry is not a NumPy array, unpacks to more than ``MAX_BYTES`` or to other than its header
            says, is refused by the restricted unpickler, or holds another kind of object.
        KeyError: When there is no such entry.
    """
    _check_size(archive.getinfo(f"{name}.npy").file_size, f"'{name}'")
    stream = io.BytesIO(archive.read(f"{name}.npy"))
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(stream)
    if version not in read_header:
        raise ValueError(f"'{name}' must be a .npy entry of version 1 or 2 (got {version}). Save it again.")
    shape, _, dtype = read_header[version](stream)
    if not dtype.hasobject:
        promised, found = prod(shape) * dtype.itemsize, stream.getbuffer().nbytes - stream.tell()
        if not all(type(length) is int and length >= 0 for length in shape) or promised != found:
            raise ValueError(
                f"'{name}' must have the {promised} bytes that its header promises (got {found}). Get the file again."
            )
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    value = read_pickle(stream, name)
    value = value.item() if isinstance(value, np.ndarray) and value.shape == () else value
    if isinstance(value, CsrShell):
        return Csr.of_shell(name, value)
    raise ValueError(f"'{name}' must box one CSR matrix (got {type(value).__name__}). Save it again.")


def check_dense(name: str, shape: tuple[int, int]) -> None:
    """Check that a sparse matrix [N, F] of fp32 fits in ``MAX_BYTES`` when every entry is written out.

    Raises:
        ValueError: When it does not.
    """
    _check_size(4 * shape[0] * shape[1], f"the {name} as a dense fp32 matrix of shape {shape}")


def _check_size(num_bytes: int, what: str) -> None:
    if num_bytes > MAX_BYTES:
        raise ValueError(
            f"{what} must take at most {MAX_BYTES} bytes (got {num_bytes}). A small file that unpacks to so much is "
            "damaged or hostile; raise safe_npz.MAX_BYTES for one that you trust."
        )
