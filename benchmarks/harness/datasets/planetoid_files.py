"""Planetoid's raw files, looked over before PyG reads them.

They are pickles, which PyG reads without restriction, and a matrix in them whose indices are out of bounds ends the
process.  Nothing in them is run here.
"""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.datasets.safe_npz import Csr, RestrictedUnpickler, matrix_of

_MATRICES = ("x", "tx", "allx", "y", "ty", "ally")
# Parts with as many rows as one another.
_PAIRS = (("x", "y"), ("allx", "ally"), ("tx", "ty"))


class _Unpickler(RestrictedUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "defaultdict"):
            return collections.defaultdict
        if name == "list" and module in ("builtins", "__builtin__"):
            return list
        if (module, name) == ("_codecs", "encode"):  # how protocol 2 of Python 3 spells bytes
            return lambda text, encoding: str(text).encode("latin1")
        return super().find_class(module, name)


def check_raw(folder: Path, prefix: str) -> None:
    """Check the files ``folder/ind.PREFIX.*``.

    Raises:
        Exception: When one is damaged, hostile, or does not fit the others; a damaged pickle raises anything.
    """
    rows = {}
    for part in _MATRICES:
        value = matrix_of(_load(folder / f"ind.{prefix}.{part}"), part)
        if not isinstance(value, Csr | np.ndarray) or len(value.shape) != 2:
            raise ValueError(f"'{part}' must be a matrix, got {type(value).__name__}")
        if isinstance(value, np.ndarray) and (value.dtype.kind not in "biuf" or not np.isfinite(value).all()):
            raise ValueError(f"'{part}' must hold finite numbers")
        rows[part] = value.shape[0]
    for one, other in _PAIRS:
        if rows[one] != rows[other]:
            raise ValueError(f"'{other}' must have {rows[one]} rows, as '{one}', got {rows[other]}")
    if not isinstance(_load(folder / f"ind.{prefix}.graph"), dict):
        raise ValueError("'graph' must be a dictionary")
    numbers = [int(line) for line in (folder / f"ind.{prefix}.test.index").read_text().split()]
    if len(set(numbers)) != rows["tx"] or len(numbers) != rows["tx"]:
        raise ValueError(f"'test.index' must name {rows['tx']} nodes, as 'tx' has, got {len(set(numbers))}")


def _load(path: Path) -> Any:
    with open(path, "rb") as file:
        return _Unpickler(file, encoding="latin1").load()
