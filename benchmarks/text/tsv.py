"""GLUE's TSV files, as its distribution has them."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.examples import Examples, TaskData, read_label
from benchmarks.text.tasks import GlueTask

# GLUE's own QQP file has a few dozen broken lines among 400 thousand; a file with more than this share is another file.
_MAX_BROKEN = 0.01


def load_tsv(task: GlueTask, root: Path) -> TaskData:
    """Read ``root/FOLDER/train.tsv`` and the evaluation files; ``root`` may also be that folder itself.

    Raises:
        BenchmarkError: When a folder, file or column is missing, or a label is none of the task's.
    """
    folder = _find(task, root)
    train, *evaluations = (read_tsv(task, folder / f"{stem}.tsv") for stem in ("train", *task.evaluations))
    return TaskData(task, train, tuple(evaluations), f"TSV files in {root}")


def read_tsv(task: GlueTask, path: Path) -> Examples:
    """Read one file; quotation marks are text like any other.

    Lines with too few fields are left out, and their number goes to standard error.

    Raises:
        BenchmarkError: As for `load_tsv`.
    """
    try:
        # Only \n ends a line: texts may hold other characters that some readers take for line ends.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise BenchmarkError(f"'{path}' must be UTF-8 text ({error}). Fetch it again.") from error
    if lines[-1]:
        # So ends one file of GLUE's own, too: said, and not refused.
        print(f"{path}: does not end with a line end. If it was cut short, fetch it again.", file=sys.stderr)
    rows = [line.removesuffix("\r").split("\t") for line in lines if line.strip("\r")]
    first = 0 if task.columns else 1
    if len(rows) <= first:
        raise BenchmarkError(f"'{path}' must hold examples (got {len(rows)} lines). Fetch it again.")
    names = list(task.columns or rows[0])
    wanted = _positions(task, names, path)
    whole = [(number, row) for number, row in enumerate(rows[first:], start=first + 1) if len(row) >= len(names)]
    broken = len(rows) - first - len(whole)
    if broken > _MAX_BROKEN * len(rows):
        raise BenchmarkError(
            f"'{path}' must have {len(names)} fields a line, {', '.join(names)} (got {broken} lines of "
            f"{len(rows) - first} with fewer). Fetch it again; fields are separated by tabs."
        )
    if broken:
        print(f"{path}: left out {broken} lines with too few fields.", file=sys.stderr)
    *texts, labels = ([row[position] for _, row in whole] for position in wanted)
    numbers = [
        read_label(task, text, f"line {number} of {path}") for text, (number, _) in zip(labels, whole, strict=True)
    ]
    return Examples(tuple(texts), numbers)


def _find(task: GlueTask, root: Path) -> Path:
    names = [f"{stem}.tsv" for stem in ("train", *task.evaluations)]
    if not root.is_dir():
        raise BenchmarkError(
            f"'data_dir' must be a folder (got '{root}'). It holds {task.folder}/{names[0]} and so on."
        )
    folder = root / task.folder
    if not folder.is_dir():
        same = [path for path in root.iterdir() if path.name.lower() == task.folder.lower()]
        folder = same[0] if same else root
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BenchmarkError(
            f"'data_dir' must hold {', '.join(f'{task.folder}/{name}' for name in names)} for {task.name} "
            f"(got '{root}' without {', '.join(missing)}). Put GLUE's TSV files there, or leave --data-dir out to "
            "fetch them from the hub."
        )
    return folder


def _positions(task: GlueTask, names: list[str], path: Path) -> list[int]:
    wanted = [*task.text, task.label]
    missing = [name for name in wanted if name not in names]
    if missing:
        raise BenchmarkError(
            f"'{path}' must have the columns {', '.join(wanted)} (got {', '.join(names)}). "
            "GLUE's files start with a line of column names, all but CoLA's."
        )
    return [names.index(name) for name in wanted]
