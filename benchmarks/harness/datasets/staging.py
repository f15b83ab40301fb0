"""Downloads that leave nothing behind when they fail."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError

TIMEOUT_S = 30.0


def missing_files(folder: Path, names: list[str]) -> list[str]:
    """Those of `names` that are not files in `folder`."""
    return [name for name in names if not (folder / name).is_file()]


def download_into(folder: Path, fetch: Callable[[Path], object]) -> None:
    """Fetch a data set beside its place and move it there when it is whole.

    Args:
        folder: Where the data set belongs; must not exist.
        fetch: Takes an empty folder and must leave ``folder.name`` in it.

    Raises:
        BenchmarkError: When `folder` exists, or the download fails; no folder made here is left then.
    """
    if folder.exists():
        raise BenchmarkError(f"'{folder}' is there but not complete. Move it away, then run with --download again.")
    made = [parent for parent in folder.parents if not parent.exists()]
    timeout = socket.getdefaulttimeout()
    done = False
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
            # The loaders open addresses without a time-out of their own.
            socket.setdefaulttimeout(TIMEOUT_S)
            with contextlib.redirect_stdout(sys.stderr):
                fetch(Path(temporary))
            shutil.move(Path(temporary) / folder.name, folder)
        done = True
    except (Exception, SystemExit) as error:  # ogb exits where it gives up; anything here means no data
        raise BenchmarkError(
            f"The download of '{folder.name}' failed ({type(error).__name__}: {error}). "
            "Check the connection and run the command again; nothing was left behind."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
        if not done:
            for parent in made:  # innermost first
                with contextlib.suppress(OSError):
                    parent.rmdir()
