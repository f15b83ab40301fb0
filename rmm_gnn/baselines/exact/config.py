"""ExactConfig: how much of an input EXACT keeps."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import torch

from rmm_gnn.codecs import Codec, get_codec

DEFAULT_KEPT_FRAC = 0.125
DEFAULT_BITS = 2


@dataclass(frozen=True)
class ExactConfig:
    """How EXACT keeps the input X [B, D] of a product; BatchNorm and ELU go by ``bits`` alone.

    Args:
        kept_frac: Share of the D features to keep, r = ceil(kept_frac D), in (0, 1].  X is projected where r < D.
        bits: Bits of a kept value: 1, 2, 4 or 8, rounded at random, with an offset and a step for every row in fp32;
            None keeps the type of the input ("EXACT (RP)").

    Raises:
        ValueError: If a value is out of range.
        TypeError: If a value is of the wrong type.

    Example:
        >>> config = ExactConfig(kept_frac=0.125, bits=2)
        >>> config.kept_features(256), config.saved_bytes(1000, 256)  # 1000 (32 / 4 + 8) and the seed
        (32, 16008)
    """

    kept_frac: float = DEFAULT_KEPT_FRAC
    bits: int | None = DEFAULT_BITS

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept_frac", _check_kept_frac(self.kept_frac))
        codec_of(self.bits)

    @property
    def codec(self) -> Codec:
        """How kept values are stored."""
        return codec_of(self.bits)

    def kept_features(self, num_features: int) -> int:
        """Number of features r that are kept out of D."""
        return math.ceil(self.kept_frac * num_features)

    def saved_bytes(self, num_rows: int, num_features: int, dtype: torch.dtype = torch.float32) -> int:
        """Bytes kept of an input [num_rows, num_features]: B (ceil(r bits / 8) + 8), and 8 for the seed."""
        return self.codec.num_bytes(num_rows, self.kept_features(num_features), dtype) + torch.int64.itemsize

    def extra_repr(self) -> str:
        """The settings as layers print them."""
        return f"kept_frac={self.kept_frac}, bits={self.bits}"


def _check_kept_frac(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"'kept_frac' must be a number (got {type(value).__name__}). Give the share of features to keep."
        )
    if not 0.0 < float(value) <= 1.0:
        raise ValueError(f"'kept_frac' must lie in (0, 1] (got {value}). It is the share of features to keep.")
    return float(value)


def codec_of(bits: int | None) -> Codec:
    """Return the codec of values in so many bits, with an offset and a step for every row in fp32, as EXACT has them.

    Raises:
        ValueError: If ``bits`` is none of 1, 2, 4, 8.
        TypeError: If it is not a whole number or None.
    """
    if bits is None:
        return get_codec("fp32")
    if isinstance(bits, bool) or not isinstance(bits, int):
        raise TypeError(f"'bits' must be a whole number or None (got {bits!r}). Choose 1, 2, 4 or 8.")
    if bits not in (1, 2, 4, 8):
        raise ValueError(f"'bits' must be 1, 2, 4, 8 or None (got {bits}). None keeps values as they are.")
    return get_codec(f"int{bits}:scale=fp32")
