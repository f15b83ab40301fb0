"""Compiles the C kernels; imports the standard library only, since it runs before the package is installed.

python -m rmm_gnn.kernels.building       # again, after a compiler was installed
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

LIBRARY = Path(__file__).with_name("_native.so")
_SOURCES = Path(__file__).with_name("csrc")
# Products and sums are rounded one by one, as torch rounds them: codes are compared bit by bit. Nobody reads the flags
# of floating-point exceptions, and loops that choose could not be vectorised with them.
_FLAGS = ("-O3", "-std=c11", "-ffp-contract=off", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")


def fingerprint() -> str:
    """Name the sources, and how they are compiled, by what is in them."""
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    for path in sorted([*_SOURCES.glob("*.c"), *_SOURCES.glob("*.h")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def find_compiler() -> list[str]:
    """Return the command of a C compiler: what CC says, or the first that is there; empty where there is none."""
    given = shlex.split(os.environ.get("CC", ""))
    return given or [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))][:1]


def compile_library(library: Path = LIBRARY) -> str | None:
    """Compile the kernels into ``library``, in place of what is there; return what went wrong, or None."""
    # Under another name first: nobody loads one half written.
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    compiler = find_compiler()
    try:
        if sys.platform == "win32":
            raise OSError("they need POSIX threads.")
        if not compiler:
            raise OSError("there is no C compiler.")
        flags = [*_FLAGS, f'-DRMM_SOURCES="{fingerprint()}"']
        command = [*compiler, *flags, *sorted(map(str, _SOURCES.glob("*.c"))), "-o", str(unfinished)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        unfinished.replace(library)
    except (OSError, subprocess.CalledProcessError) as error:
        for path in (unfinished, library):
            with contextlib.suppress(OSError):  # a folder that cannot be written to
                path.unlink(missing_ok=True)
        return f"{error} {getattr(error, 'stderr', '')}".strip()
    return None


if __name__ == "__main__":
    problem = compile_library()
    sys.exit(f"error: the kernels were not compiled: {problem}" if problem else None)
