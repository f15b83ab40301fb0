"""How much a user will keep: bytes, a share, or as much as one rate for all layers takes."""

from __future__ import annotations

import re

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_TEXT = re.compile(r"\s*(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>%|[KMG]?I?B)\s*", re.IGNORECASE)


def parse_budget(budget: int | str, stock_bytes: int) -> int:
    """Return a budget in bytes.

    Args:
        budget: Bytes, or a text such as "2GiB", "500 MB" or "10%", of what the stock model keeps.
        stock_bytes: What 100 % is.

    Raises:
        TypeError: If it is neither a whole number nor a text.
        ValueError: If it is not positive or not understood.

    Example:
        >>> parse_budget("1.5KiB", 0), parse_budget("10%", 5000)
        (1536, 500)
    """
    if isinstance(budget, bool) or not isinstance(budget, int | str):
        raise TypeError(
            f"'budget' must be a number of bytes or a text (got {type(budget).__name__}). Write '2GiB' or '10%'."
        )
    size = float(budget) if isinstance(budget, int) else _read(budget, stock_bytes)
    if size < 1:
        raise ValueError(f"'budget' must be positive (got {budget!r}). Write '2GiB' or '10%'.")
    return int(size)


def _read(text: str, stock_bytes: int) -> float:
    match = _TEXT.fullmatch(text)
    if match is None:
        raise ValueError(f"'budget' must be bytes or a share (got {text!r}). Write '2GiB', '500MB' or '10%'.")
    number = float(match["number"])
    return number / 100 * stock_bytes if match["unit"] == "%" else number * _UNITS[match["unit"].upper()]
