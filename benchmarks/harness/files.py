"""Tables, pictures and JSON that appear whole or not at all; what the system refuses is said in a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.harness.errors import writing


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8; its folder is made if it is not there.

    Raises:
        BenchmarkError: When the system refuses; a former file stays.
    """
    # Imported late: commands are read before the package, and torch with it, is.
    from rmm_gnn._files import write_whole

    with writing(path, _KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)


def write_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """Write a figure of matplotlib; its folder is made if it is not there.

    Raises:
        BenchmarkError: When the system refuses; a former file stays.
    """
    from rmm_gnn._files import save_figure

    with writing(path, _KEPT):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_figure(figure, path, dpi)


_KEPT = "Records that were written are kept, and a former file of this name."
