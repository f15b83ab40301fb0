"""The folder of a sweep's results, made, tried and locked before the first run, and not after the last."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError, writing
from benchmarks.harness.jsonl import FILE
from benchmarks.harness.locks import exclusive
from rmm_gnn._files import LEFTOVER_SUFFIX


@contextmanager
def out_folder(folder: Path) -> Iterator[None]:
    """Make a folder, see that it can be written to, and keep other commands out of it.

    What a killed command left half written is deleted.  A folder made here in which nothing was written goes again.

    Args:
        folder: May exist.

    Raises:
        BenchmarkError: When it cannot be made or written to, or another command is at work in it.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with writing(folder, "No run was started."):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            with writing(folder, "No run was started."):
                for leftover in folder.glob(f".*{LEFTOVER_SUFFIX}"):
                    leftover.unlink()
                with tempfile.TemporaryFile(dir=folder) as file:
                    file.write(b"1")
            if (folder / FILE).exists():
                with writing(folder / FILE, "No run was started."), open(folder / FILE, "ab"):
                    pass
            yield
    finally:
        for place in made:  # innermost first; only empty ones go
            with suppress(OSError):
                place.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder."""
    if os.name != "posix":  # where folders cannot be opened
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(exclusive(descriptor, wait=False))
            except BlockingIOError:
                raise BenchmarkError(
                    f"'out' must not be in use by another command (got '{folder}'). Wait until that one has ended, or "
                    "choose another --out."
                ) from None
            yield
    finally:
        os.close(descriptor)
