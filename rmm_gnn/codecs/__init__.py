"""Codecs: how a sketch is stored.  One line in ``CODECS`` makes a codec known by name."""

from __future__ import annotations

import torch

from rmm_gnn._validation import check_choice
from rmm_gnn.codecs.base import Codec
from rmm_gnn.codecs.cast import CastCodec

__all__ = ["CODECS", "CastCodec", "Codec", "get_codec"]

CODECS: dict[str, Codec] = {
    "fp32": CastCodec("fp32", None),
    "bf16": CastCodec("bf16", torch.bfloat16),
    "fp16": CastCodec("fp16", torch.float16),
}


def get_codec(name: str) -> Codec:
    """Return the codec of that name; unknown names raise a ValueError that lists the known ones."""
    return CODECS[check_choice("codec", name, CODECS)]
