"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

LEFTOVER_SUFFIX = ".partial"


@contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a new file that takes the place of ``path`` when the block has ended without an error.

    Until then ``path`` is what it was: a reader, a crash or a full disk never meets half a file.  The content is on
    disk before the name changes, and the name before this returns.  The permissions of a file that is replaced stay; a
    symbolic link stays one, and its target is replaced.  What is no regular file, as a pipe or ``/dev/stdout``, is
    written in place.

    Args:
        path: In a folder that exists and may be written to.
        mode: "w" for text, "wb" for bytes; the file can seek.
        **options: Further arguments of ``open``.

    Yields:
        The open file.

    Raises:
        OSError: If the file cannot be written; ``path`` is unchanged then.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        with open(path, mode, **options) as file:
            yield file
        return
    # Not tempfile's: that is for the owner alone, and a new file is to have the permissions that `open` gives.
    temporary = target.with_name(f".{target.name[:200]}.{os.urandom(4).hex()}{LEFTOVER_SUFFIX}")
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, mode, **options) as file:
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:  # Ctrl-C, too, must leave nothing
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to disk; nothing where the system cannot."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, in UTF-8, as `whole_file` does."""
    with whole_file(path, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)


def save_figure(figure: Any, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a figure of matplotlib as `whole_file` does.

    The ending of ``path`` chooses the format; without one it is matplotlib's default, whose ending is added.
    """
    target = Path(path)
    if not target.suffix:
        target = target.with_suffix(f".{figure.canvas.get_default_filetype()}")
    with whole_file(target) as file:
        figure.savefig(file, dpi=dpi, format=target.suffix.removeprefix("."))
