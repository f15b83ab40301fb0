"""A method named on the command line, with settings of its own where it has some: ``exact:rate=0.125``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.harness.methods import METHODS

AXES = (
    "sketch", "rate", "center", "codec", "norm_codec", "norm_rate", "x0_codec", "anchor", "held", "exact_bits",
    "budget", "adaptive", "noise_target",
)  # fmt: skip
SYNTAX = "NAME[:SETTING=VALUE,...]"


def parse_method(text: str, readers: Mapping[str, Any], allowed: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Read ``NAME`` or ``NAME:SETTING=VALUE,...``.

    Args:
        text: Such as ``rmm-lean:rate=0.55,codec=int2,norm-codec=int1``.  A setting is spelled as its flag is.
        readers: For settings that are not words: name and what makes the value of its text (``float``, ``int``).
        allowed: For settings with few values: name and these values.

    Returns:
        The method's name, and the settings given with it by the names in `AXES`.

    Raises:
        ValueError: When the method is unknown, does not have the setting, or a value cannot be read.

    Example:
        >>> parse_method("exact:rate=0.125,exact-bits=2", {"rate": float, "exact_bits": int}, {})
        ('exact', {'rate': 0.125, 'exact_bits': 2})
    """
    name, _, settings = text.partition(":")
    if name not in METHODS:
        raise ValueError(f"'method' must be one of {', '.join(METHODS)} (got {name!r}). Choose a known method.")
    axes = METHODS[name].axes
    given: dict[str, Any] = {}
    for key, value in _pairs(settings):
        if key not in axes or not value:
            offered = f"Write {name}:SETTING=VALUE with one of: {', '.join(map(_flag, axes))}." if axes else "Drop it."
            raise ValueError(f"'method' must have settings of {name} (got '{_flag(key)}={value}'). {offered}")
        try:
            given[key] = readers.get(key, str)(value)
        except ValueError as error:
            raise ValueError(
                f"'{key}' must be a number (got {value!r} in '{text}'). Write it as the flag takes it."
            ) from error
        if key in allowed and given[key] not in allowed[key]:
            rule = f"be one of {', '.join(map(str, allowed[key]))}"
            raise ValueError(f"'{key}' must {rule} (got {value!r} in '{text}'). Choose one.")
    return name, given


def _pairs(settings: str) -> list[tuple[str, str]]:
    """Split at commas, but not at those within a value: ``sketch=sparse_sign:nnz=4,seed=1,rate=0.1`` has two pairs."""
    pairs: list[tuple[str, str]] = []
    for part in settings.split(",") if settings else ():
        key, _, value = part.partition("=")
        key = key.strip().replace("-", "_")
        if key not in AXES and pairs and ":" in pairs[-1][1]:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{part}")
        else:
            pairs.append((key, value.strip()))
    return pairs


def _flag(axis: str) -> str:
    return axis.replace("_", "-")
