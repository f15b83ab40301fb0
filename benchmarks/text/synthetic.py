"""Made-up sentences in GLUE's file layouts: the whole path from TSV to report runs without any data."""

from __future__ import annotations

import random
from pathlib import Path

from benchmarks.text.tasks import TASKS, GlueTask

_SUBJECTS = ("the film", "this play", "her book", 'the "new" song', "a story", "that scene", "his speech")
_VERBS = ("is", "was", "seems", "remains", "feels")
_GOOD = ("wonderful", "moving", "clever", "a joy", "bright", "warm")
_BAD = ("dull", "tedious", "clumsy", "a bore", "gloomy", "cold")
_TAILS = ("", "to the very end", "for all of us", "in every way", "from first to last")
_SIZES = {"train": 96, "dev": 32, "dev_matched": 32, "dev_mismatched": 32}


def write_task(name: str, root: Path, seed: int = 0) -> Path:
    """Write ``root/FOLDER/*.tsv``: sentences whose mood decides the label, in the columns of the task's own files.

    Returns:
        The folder.
    """
    task = TASKS[name]
    folder = root / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    for stem in ("train", *task.evaluations):
        generator = random.Random(f"{seed} {name} {stem}")
        columns = task.columns or ("index", *task.text, task.label)
        rows = [_row(task, columns, number, generator) for number in range(_SIZES[stem])]
        lines = rows if task.columns else [columns, *rows]
        (folder / f"{stem}.tsv").write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def _row(task: GlueTask, columns: tuple[str, ...], number: int, generator: random.Random) -> tuple[str, ...]:
    mood = generator.randrange(max(2, len(task.labels)))
    score = generator.uniform(0, 5)
    moods = {0: (_BAD, _BAD), 1: (_GOOD, _GOOD), 2: (_GOOD, _BAD)}[mood]
    if task.is_regression:
        moods = (_GOOD, _GOOD if score > 2.5 else _BAD)
    values = dict.fromkeys(columns, "-") | {"index": str(number)}
    values |= {column: _sentence(words, generator) for column, words in zip(task.text, moods, strict=False)}
    values[task.label] = f"{score:.3f}" if task.is_regression else task.labels[mood]
    return tuple(values[column] for column in columns)


def _sentence(words: tuple[str, ...], generator: random.Random) -> str:
    parts = (generator.choice(_SUBJECTS), generator.choice(_VERBS), generator.choice(words), generator.choice(_TAILS))
    return " ".join(filter(None, parts)) + " ."
