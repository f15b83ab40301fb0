"""The checkpoint of one run: when it is due, what it cost, and its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.harness.checkpoints import checkpoint_path, checkpoints_in, read_checkpoint, write_checkpoint
from benchmarks.harness.errors import BenchmarkError

# Without a given number of epochs: not sooner than after a minute, and for at most a hundredth of the time.
_LEAST_S = 60.0
_COST = 0.01


class RunCheckpoints:
    """Writes and reads the checkpoint of a run, in the folder of its results.

    Args:
        folder: Exists by the time the first checkpoint is due.
        key: Of the run.
        every: Epochs or steps from one to the next; 0 writes none, None goes by time.
        resume: Whether to go on from one that is there.
    """

    def __init__(self, folder: Path, key: str, *, every: int | None = None, resume: bool = False) -> None:
        self._path, self._key, self._every, self._resume = checkpoint_path(folder, key), key, every, resume
        self._last = time.perf_counter()
        self._took_s = 0.0

    def read(self) -> dict[str, Any] | None:
        """The state to go on from; None where there is none, or none is to be used.

        Raises:
            BenchmarkError: When the file is damaged, or of another version or run.
        """
        if not self._resume or not self._path.exists():
            return None
        return read_checkpoint(self._path, self._key)

    def is_due(self, number: int) -> bool:
        """Whether to write one after this epoch or step, counted from 1."""
        if self._every is not None:
            return self._every > 0 and number % self._every == 0
        return time.perf_counter() - self._last >= max(_LEAST_S, self._took_s / _COST)

    def write(self, state: dict[str, Any]) -> None:
        """Write a state in place of the one before.

        Raises:
            BenchmarkError: When the system refuses; the one before is still there then.
        """
        start = time.perf_counter()
        write_checkpoint(self._path, self._key, state)
        self._last = time.perf_counter()
        self._took_s = self._last - start

    def remove(self) -> None:
        """Delete the file, of a run that is recorded."""
        self._path.unlink(missing_ok=True)


def check_unfinished(folder: Path, *, resume: bool) -> None:
    """Check that no checkpoints are there, or that they are to be used.

    Args:
        folder: For results; may not exist.
        resume: Whether there may be any.

    Raises:
        BenchmarkError: When there are, and they are not.
    """
    found = checkpoints_in(folder)
    if found and not resume:
        raise BenchmarkError(
            f"'{folder}' already holds {len(found)} unfinished runs. Add --resume to go on with them, or choose "
            "another --out."
        )


def say_others(folder: Path, keys: Iterable[str]) -> None:
    """Say on standard error that checkpoints of other settings are there, if any are.

    Args:
        folder: For results; may not exist.
        keys: Of the runs that are asked for, or recorded.
    """
    known = {checkpoint_path(folder, key) for key in keys}
    others = [path for path in checkpoints_in(folder) if path not in known]
    if others:
        is_one = len(others) == 1
        print(
            f"{len(others)} checkpoint{'' if is_one else 's'} of other settings {'is' if is_one else 'are'} kept in "
            f"{folder}: a command with those settings goes on from {'it' if is_one else 'them'}.",
            file=sys.stderr,
        )


def clear_checkpoints(folder: Path, finished: Iterable[str]) -> None:
    """Delete the checkpoints of runs, by key, that are recorded: of one that was killed between the two."""
    for key in finished:
        checkpoint_path(folder, key).unlink(missing_ok=True)
