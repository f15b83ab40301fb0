"""The one error a benchmark shows without a traceback."""

from __future__ import annotations

import importlib
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
