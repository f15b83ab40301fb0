"""What every command of the benchmarks does alike: its parser, and what it says where it cannot go on."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from benchmarks.harness.errors import BenchmarkError

# What the system says where a place is full, closed, or no folder; any other error of it is ours.
_OF_THE_USER = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the first paragraph of the script's docstring, and defaults."""
    return argparse.ArgumentParser(
        description=str(doc).split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )


@contextmanager
def told() -> Iterator[None]:
    """What the system refuses becomes a `BenchmarkError` where the user can put it right.

    Raises:
        BenchmarkError: In place of such an OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_THE_USER:
            raise
        raise BenchmarkError(f"{error}. Free space there, give permission, or name another place.") from error


def guarded(work: Callable[[], int], interrupted: str) -> int:
    """The exit code of ``work``: 2 for something the user can put right, which is said on standard error.

    Args:
        work: Returns the exit code where nothing goes wrong.
        interrupted: What to say after Ctrl-C, whose exit code is 130.
    """
    try:
        with told():
            return work()
    except BenchmarkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
