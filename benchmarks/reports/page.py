"""A report: what it reproduces, its tables, its notes, and a picture beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.errors import require
from benchmarks.harness.files import write_text


@dataclass(frozen=True)
class Page:
    """What `write` writes.

    Attributes:
        title: First line.
        reproduces: What of the paper it stands beside, in a sentence or two.
        tables: Markdown tables, each with a line above it (which may be empty).
        notes: What a reader has to know, one point each; empty ones are left out.
        draw: Draws the picture into a file.
    """

    title: str
    reproduces: str
    tables: Sequence[tuple[str, str]]
    notes: Sequence[str | None]
    draw: Callable[[Path], None]


def table(headers: Sequence[str], body: Sequence[Sequence[str]], words: int = 1) -> str:
    """A Markdown table, its first ``words`` columns to the left, the others to the right."""
    align = ("left",) * words + ("right",) * (len(headers) - words)
    return require("tabulate").tabulate(body, headers, tablefmt="github", disable_numparse=True, colalign=align)


def write(page: Page, folder: Path, name: str) -> str:
    """Write ``name.md`` and ``name.png``.

    Args:
        page: The report.
        folder: Made if it is not there.
        name: Stem of the two files.

    Returns:
        The text.
    """
    page.draw(folder / f"{name}.png")
    parts = [f"# {page.title}", page.reproduces]
    parts += [f"{caption}\n\n{body}" if caption else body for caption, body in page.tables]
    parts += [f"![{page.title}]({name}.png)", "\n".join(f"- {note}" for note in page.notes if note)]
    text = "\n\n".join(parts) + "\n"
    write_text(folder / f"{name}.md", text)
    return text
