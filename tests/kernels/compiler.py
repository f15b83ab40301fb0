"""The mark of tests that need a C compiler: one that works, since CC may name anything."""

import subprocess

import pytest

from rmm_gnn.kernels import building


def works() -> bool:
    """Whether the compiler that kernels are compiled with answers."""
    compiler = building.find_compiler()
    try:
        return bool(compiler) and not subprocess.run([*compiler, "--version"], capture_output=True).returncode
    except OSError:
        return False


NEEDS_COMPILER = pytest.mark.skipif(not works(), reason="there is no C compiler")
