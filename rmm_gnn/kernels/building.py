"""Compiles the C kernels; imports the standard library only, since it runs before the package is installed.

python -m rmm_gnn.kernels.building       # again, after a compiler was installed
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

LIBRARY = Path(__file__).with_name("_native.so")
_SOURCES = Path(__file__).with_name("csrc")
_FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-pthread")


def fingerprint() -> str:
    """Name the sources by what is in them."""
    digest = hashlib.sha256()
    for path in sorted(_SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def find_compiler() -> list[str]:
    """Return the command of a C compiler: what CC says, or the first that is there; empty where there is none."""
    given = shlex.split(os.environ.get("CC", ""))
    return given or [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))][:1]


def compile_library(library: Path = LIBRARY) -> str | None:
    """Compile the kernels into ``library``, and remove what was there before; return what went wrong, or None."""
    library.unlink(missing_ok=True)  # of other sources, or of another machine
    compiler = find_compiler()
    if sys.platform == "win32":
        return "they need POSIX threads."
    if not compiler:
        return "there is no C compiler."
    # Under another name first: nobody loads one half written.
    unfinished = library.with_suffix(f".{os.getpid()}.tmp")
    flags = [*_FLAGS, f'-DRMM_SOURCES="{fingerprint()}"']
    command = [*compiler, *flags, *sorted(map(str, _SOURCES.glob("*.c"))), "-o", str(unfinished)]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        unfinished.replace(library)
    except (OSError, subprocess.CalledProcessError) as error:
        unfinished.unlink(missing_ok=True)
        return f"{error} {getattr(error, 'stderr', '')}".strip()
    return None


if __name__ == "__main__":
    problem = compile_library()
    sys.exit(f"error: the kernels were not compiled: {problem}" if problem else None)
