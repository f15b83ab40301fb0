"""The one error a benchmark shows without a traceback."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class BenchmarkError(Exception):
    """Something the user can put right; scripts print it to standard error and exit with code 2."""


def require(module: str, extras: str = "benchmarks") -> ModuleType:
    """Import an optional dependency of the benchmarks, or say how to install it.

    Args:
        module: Dotted module name.
        extras: The extras of the package that bring it.

    Returns:
        The imported module.

    Raises:
        BenchmarkError: When the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise BenchmarkError(
            f"'{module}' could not be imported ({error}). Install the benchmark dependencies: "
            f"pip install -e '.[{extras}]'"
        ) from error


@contextmanager
def writing(path: str | os.PathLike[str], kept: str = "Nothing that was there is lost.") -> Iterator[None]:
    """Around whatever writes `path`: what the system refuses, as on a full disk, becomes a `BenchmarkError`.

    Args:
        path: File or folder, for the message.
        kept: What the user still has, for the message.

    Raises:
        BenchmarkError: In place of OSError.
    """
    try:
        yield
    except OSError as error:
        raise BenchmarkError(
            f"'{os.fspath(path)}' could not be written ({error.strerror or error}). {kept} "
            "Free space there or give it write permission, and run the command again."
        ) from error
