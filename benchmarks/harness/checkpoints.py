"""Checkpoint files: one for an unfinished run, written whole, read with nothing but tensors and plain values.

A line of JSON says what follows: format, schema, versions, run, length and SHA-256 of what `torch.save` wrote.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch

from benchmarks.harness.errors import BenchmarkError, writing
from rmm_gnn import __version__
from rmm_gnn._files import whole_file

FORMAT = "rmm-gnn benchmark checkpoint"
SCHEMA = 1
_HEADER_BYTES = 512
_ANEW = "Delete the file to run from the start."


def checkpoint_path(folder: Path, key: str) -> Path:
    """Where the checkpoint of the run with this key belongs."""
    return folder / f"checkpoint-{key}.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of unfinished runs in a folder, which may not exist."""
    return sorted(folder.glob(checkpoint_path(Path(), "*").name))


def write_checkpoint(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write a checkpoint; a former one stays until the new one is whole and on disk.

    Args:
        path: In a folder that exists.
        key: Of the run.
        state: Tensors, numbers, strings, None, and dicts, lists and tuples of them.

    Raises:
        BenchmarkError: When the system refuses, as where the disk is full.
    """
    with writing(path, "The last checkpoint, if there was one, is as it was; --resume goes on from it."):
        with whole_file(path) as file:
            file.write(bytes(_HEADER_BYTES))
            body = _Hashed(file)
            try:
                torch.save(state, body)
            except Exception:
                # What the disk said comes first: torch would have it that its own archive is inconsistent.
                body.raise_error()
                raise
            body.raise_error()
            file.seek(0)
            file.write(_header(key, body.num_bytes, body.digest.hexdigest()))


def read_checkpoint(path: Path, key: str) -> dict[str, Any]:
    """Read what `write_checkpoint` wrote, tensors on CPU.

    Raises:
        BenchmarkError: When it is damaged, or of another format, version or run.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BenchmarkError(f"'{path}' could not be read ({error.strerror}). {_ANEW}") from error
    body = memoryview(content)[_HEADER_BYTES:]
    try:
        found = json.loads(content[:_HEADER_BYTES])
        if not isinstance(found, dict) or found.pop("format") != FORMAT:
            raise ValueError("another format")
    except (ValueError, KeyError) as error:
        raise BenchmarkError(f"'{path}' must be a checkpoint (got another or a damaged file). {_ANEW}") from error
    expected = _versions() | {"key": key}
    for name, value in expected.items():
        if found.get(name) != value:
            raise BenchmarkError(
                f"'{path}' must be of {name} {value} (got {found.get(name)}), or the run would not go on as it began. "
                "Resume with what wrote it, or delete the file to run from the start."
            )
    if len(body) != found.get("bytes"):
        raise BenchmarkError(f"'{path}' must be whole (got {len(body)} of {found.get('bytes')} bytes). {_ANEW}")
    if hashlib.sha256(body).hexdigest() != found.get("sha256"):
        raise BenchmarkError(f"'{path}' must be as it was written (got other bytes by its checksum). {_ANEW}")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError) as error:
        raise BenchmarkError(
            f"'{path}' must hold nothing but tensors and plain values (got more, which is refused and was not run). "
            f"{_ANEW}"
        ) from error
    return state


def _versions() -> dict[str, Any]:
    """What has to be the same for a run to go on as it began."""
    return {"schema": SCHEMA, "torch": str(torch.__version__), "rmm-gnn": __version__}


def _header(key: str, num_bytes: int, digest: str) -> bytes:
    values = {"format": FORMAT, **_versions(), "key": key, "bytes": num_bytes, "sha256": digest}
    line = json.dumps(values).encode()
    assert len(line) < _HEADER_BYTES
    return line.ljust(_HEADER_BYTES - 1) + b"\n"


class _Hashed:
    """A file for `torch.save` that hashes and counts what it is given.

    `torch.save` calls `write` from C++, where an exception is lost, or ends the process.  It is kept here instead, what
    follows is passed over, and `raise_error` raises it.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._error: BaseException | None = None
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        if self._error is None:
            try:
                self._file.write(data)
                self.digest.update(data)
                self.num_bytes += size
            except BaseException as error:  # Ctrl-C, too
                self._error = error
        return size

    def flush(self) -> None:
        """There is nothing to do: the file is forced to disk when it is whole."""

    def raise_error(self) -> None:
        """Raise what went wrong in `write`, if anything did."""
        if self._error is not None:
            raise self._error
