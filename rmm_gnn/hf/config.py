"""Settings as command lines, JSON files and ``TrainingArguments`` carry them: plain dictionaries and strings."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from rmm_gnn.config import RMMConfig
from rmm_gnn.sketches import from_settings

# What stands for a config, and for one config a pattern of names.
OneConfig = RMMConfig | Mapping[str, Any]
AnyConfig = OneConfig | Mapping[str, OneConfig | None] | str | os.PathLike[str] | None

_SETTINGS = tuple(field.name for field in fields(RMMConfig))


def read_config(config: AnyConfig) -> RMMConfig | dict[str, RMMConfig | None]:
    """Return the ``RMMConfig`` behind plain settings, or one for each pattern of names.

    Args:
        config: An ``RMMConfig``; its settings as a dictionary, such as ``{"rate": 0.1, "codec": "int8"}``; a
            dictionary from patterns to either, or to None; any of these dictionaries as JSON; or the path of a file
            that holds the JSON.  None stands for ``RMMConfig()``.

    Returns:
        The config, or a dictionary from patterns to configs.

    Raises:
        TypeError: If it is none of these, or a setting is of the wrong type.
        ValueError: If a setting is unknown or out of range, or the JSON is invalid.
        FileNotFoundError: If a string is neither JSON nor the path of a file.

    Example:
        >>> read_config('{"rate": 0.5, "codec": "int8"}') == RMMConfig(rate=0.5, codec="int8")
        True
        >>> configs = read_config({".*attention.*": {"rate": 0.2, "min_size": 64}, ".*": {"rate": 0.1}})
        >>> configs[".*attention.*"].min_size
        64
    """
    if config is None:
        return RMMConfig()
    if isinstance(config, RMMConfig):
        return config
    if isinstance(config, str | os.PathLike):
        config = _parsed(config)
    if not isinstance(config, Mapping):
        raise TypeError(
            f"'config' must be an RMMConfig, its settings as a dictionary or JSON, or a mapping of name patterns to "
            f"them (got {type(config).__name__}). Write RMMConfig(rate=0.1)."
        )
    _check_keys(config)
    if config and not config.keys() & set(_SETTINGS):
        of_patterns = {value is None or isinstance(value, RMMConfig | Mapping) for value in config.values()}
        if of_patterns == {True}:
            return {
                pattern: value if value is None or isinstance(value, RMMConfig) else _from_settings(value, pattern)
                for pattern, value in config.items()
            }
    return _from_settings(config)


def _parsed(text: str | os.PathLike[str]) -> Any:
    source, read = "the text", partial(str, text)
    if isinstance(text, os.PathLike) or not text.lstrip().startswith("{"):
        path = Path(text)
        try:
            there = path.is_file()
        except OSError:  # no file can have such a name
            there = False
        if not there:
            raise FileNotFoundError(
                f"'config' must be JSON or the path of a JSON file (got {_shown(str(text))}). "
                "Write '{\"rate\": 0.1}', or check the path."
            )
        source, read = f"file {str(path)!r}", partial(path.read_text, encoding="utf-8")
    try:
        return json.loads(read())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'config' must be valid JSON (got {source}: {error}). "
            "Write keys in double quotes, as in '{\"rate\": 0.1}'."
        ) from error


def _shown(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:200]!r} and so on"


def _check_keys(given: Mapping[Any, Any]) -> None:
    others = [key for key in given if not isinstance(key, str)]
    if others:
        raise TypeError(
            f"'config' must have strings as keys (got {others[0]!r}). Write settings, as {{'rate': 0.1}}, or regular "
            "expressions for names of layers, as {'.*query': {'rate': 0.1}}."
        )


def _from_settings(settings: Mapping[str, Any], pattern: str | None = None) -> RMMConfig:
    _check_keys(settings)
    unknown = [key for key in settings if key not in _SETTINGS]
    if unknown:
        near = difflib.get_close_matches(str(unknown[0]), _SETTINGS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        place = "" if pattern is None else f" for {pattern!r}"
        raise ValueError(
            f"'config' must have known settings (got {', '.join(map(repr, unknown))}{place}). {hint}"
            f"They are: {', '.join(_SETTINGS)}."
        )
    sketch = settings.get("sketch")
    if not isinstance(sketch, Mapping):
        return RMMConfig(**settings)
    # As ``RMMConfig.to_dict`` writes a family with its settings.
    return RMMConfig(**{**settings, "sketch": from_settings(sketch)})
