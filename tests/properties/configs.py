"""Configs that nobody chose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from rmm_gnn import RMMConfig
from tests.codecs.cases import CASES as CODECS
from tests.sketches.cases import CASES as FAMILIES


@st.composite
def configs(draw: st.DrawFn, *, codecs: list[str] | None = None, **fixed: Any) -> RMMConfig:
    """Every family, every codec, any rate or size and bounds on it, centred or not, little room or much."""
    settings: dict[str, Any] = {
        "sketch": FAMILIES[draw(st.sampled_from(sorted(FAMILIES)))],
        "codec": CODECS[draw(st.sampled_from(sorted(codecs or CODECS)))],
        "center": draw(st.booleans()),
        "workspace_bytes": draw(st.sampled_from([2**13, 2**16, 2**26])),
        "backend": draw(st.sampled_from(["auto", "torch"])),
    }
    if draw(st.booleans()):
        settings["rate"] = draw(st.floats(1e-6, 1.0) | st.sampled_from([0.1, 0.5, 1.0]))
    else:
        settings["size"] = draw(st.integers(1, 100) | st.just(10**12))
    bounds = sorted(draw(st.lists(st.integers(1, 60), min_size=2, max_size=2)))
    for name, value in zip(("min_size", "max_size"), bounds, strict=True):
        if draw(st.booleans()):
            settings[name] = value
    if "rate" in fixed:
        settings.pop("size", None)
    return replace(RMMConfig(**{**settings, **fixed}))
