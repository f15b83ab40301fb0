"""A file of one JSON object a line: appended, never rewritten."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import Any

from benchmarks.harness.errors import BenchmarkError, writing
from benchmarks.harness.locks import exclusive
from rmm_gnn._files import sync_folder

FILE = "records.jsonl"
# What every record has, of whatever benchmark.
_FIELDS = {"key": str, "config": dict, "results": dict}


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Write one line, whole or not at all as far as a reader can tell, and force it to disk.

    Two processes may write at a time: one waits for the other.

    Args:
        folder: Made if it is not there.
        record: JSON-able; a number that is not finite becomes null.

    Raises:
        BenchmarkError: When the system refuses; what was there before is there still.
    """
    line = (json.dumps(_finite(record), allow_nan=False) + "\n").encode()
    path = folder / FILE
    with writing(path, "Finished runs in it are kept; --resume continues."):
        folder.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with open(path, "ab+", buffering=0) as file, exclusive(file.fileno()):
            end = _drop_torn_line(file)
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
                os.fsync(file.fileno())
            except BaseException:  # of a line that was cut short nothing shall stay
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
        if is_new:
            sync_folder(folder)


def read_lines(folder: Path, schema: int | str) -> list[dict[str, Any]]:
    """The finished runs in a folder; a last line cut short by a crash is passed over.

    Args:
        folder: May lack the file, or not exist.
        schema: What the field of this name must say.

    Returns:
        Records in the order written.

    Raises:
        BenchmarkError: When another line is damaged or no record, or the file is of another schema.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a torn line
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            found = record["schema"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(path, number, error) from error
        if found != schema:
            raise BenchmarkError(
                f"'{path}' must have schema {schema} (got {found} at line {number}). Choose another --out."
            )
        for name, kind in _FIELDS.items():
            if not isinstance(record.get(name), kind):
                raise _damaged(path, number, f"no record: '{name}' is missing or of another type")
        records.append(record)
    return records


def finished_runs(folder: Path, schema: int | str, *, resume: bool) -> dict[str, dict[str, Any]]:
    """The records in a folder for results, by key: what need not be run again.

    Args:
        folder: May not exist.
        schema: As for `read_lines`.
        resume: Whether there may be any.

    Raises:
        BenchmarkError: When it is no folder, or holds records and `resume` is not given, or as `read_lines` does.
    """
    if folder.exists() and not folder.is_dir():
        raise BenchmarkError(f"'out' must be a folder (got the file '{folder}'). Choose another --out.")
    records = read_lines(folder, schema)
    if records and not resume:
        raise BenchmarkError(
            f"'{folder / FILE}' already holds {len(records)} finished runs. Add --resume to continue "
            "there, or choose another --out."
        )
    return {record["key"]: record for record in records}


def _damaged(path: Path, number: int, reason: object) -> BenchmarkError:
    return BenchmarkError(
        f"'{path}' is damaged at line {number} ({reason}). Remove that line, or choose another --out."
    )


def _drop_torn_line(file: Any) -> int:
    """Cut what follows the last newline, or the next record would be glued to it; return where the file ends."""
    file.seek(0)
    end: int = file.read().rfind(b"\n") + 1
    file.truncate(end)
    file.seek(end)
    return end


def _finite(value: Any) -> Any:
    """JSON has no inf or nan; a run that diverged still gets its record."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
