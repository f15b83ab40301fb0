"""The JSON file of a micro benchmark: settings, environment, rows."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``."""
    parser.add_argument("--out", type=Path, help="JSON file for the numbers, which scripts/compare_bench.py compares")


def write(given: argparse.Namespace, environment: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the file where ``--out`` names one; its folder is made."""
    if given.out:
        settings = {name: value for name, value in vars(given).items() if name != "out"}
        given.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": settings, "environment": environment, "rows": rows}, indent=1)
        given.out.write_text(text + "\n")
