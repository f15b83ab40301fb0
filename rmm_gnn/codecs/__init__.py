"""Codecs: how a kept matrix is stored.  One line in ``CODECS`` makes a codec known by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

from rmm_gnn._validation import check_choice
from rmm_gnn.codecs.base import Codec, row_tiles
from rmm_gnn.codecs.cast import CAST_DTYPES, CastCodec
from rmm_gnn.codecs.norm_coding import NormCoding
from rmm_gnn.codecs.stochastic import StochasticCodec

__all__ = ["CAST_DTYPES", "CODECS", "CastCodec", "Codec", "NormCoding", "StochasticCodec", "get_codec", "row_tiles"]

#: What makes the codec of each name.
CODECS: dict[str, Callable[..., Codec]] = {
    **{name: partial(CastCodec, name, dtype) for name, dtype in CAST_DTYPES.items()},
    "int8": partial(StochasticCodec, 8),
    "int4": partial(StochasticCodec, 4),
    "int2": partial(StochasticCodec, 2),
    "int1": partial(StochasticCodec, 1),
}


def get_codec(codec: str | Codec, argument: str = "codec") -> Codec:
    """Return the codec that a name, or a name with settings such as ``int4:group_size=64``, stands for.

    ``argument`` is what errors call it.

    Raises:
        ValueError: If the name or a setting is unknown, or a value is out of range.
        TypeError: If ``codec`` is neither a name nor a codec.
    """
    if isinstance(codec, Codec):
        return codec
    given: Any = codec
    if not isinstance(given, str):  # the cache below could not even look up a list
        check_choice(argument, given, CODECS)
    name, _, text = given.partition(":")
    return _made(CODECS[check_choice(argument, name, CODECS)], name, text, argument)


@lru_cache(maxsize=256)
def _made(make: Callable[..., Codec], name: str, text: str, argument: str) -> Codec:
    settings: dict[str, Any] = {}
    for setting in filter(None, text.split(",")):
        key, _, value = setting.partition("=")
        if not name.startswith("int") or key not in ("group_size", "scale") or not value:
            raise ValueError(
                f"'{argument}' must have settings that {name} knows (got {setting!r}). "
                "The int codecs know group_size=COLUMNS and scale=bf16 or scale=fp32; the others have none."
            )
        if key in settings:
            raise ValueError(f"'{argument}' must have {key} once (got '{name}:{text}'). Leave one of them out.")
        digits = value.removeprefix("-")
        # More digits than a count of columns has are none; Python refuses to convert thousands of them.
        settings[key] = int(value) if digits.isascii() and digits.isdecimal() and len(digits) < 20 else value
    return make(**settings)
