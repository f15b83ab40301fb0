"""Locks between processes, on files and folders; nothing where the system or the file system has none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]


@contextmanager
def exclusive(descriptor: int, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of an open file or folder.

    Raises:
        BlockingIOError: When another process holds it and ``wait`` is False.
    """
    if fcntl is None:
        yield
        return
    locked = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = True
    except BlockingIOError:
        raise
    except OSError:  # as on some network file systems
        pass
    try:
        yield
    finally:
        if locked:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
