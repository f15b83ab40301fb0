"""The loaders as tests name them, each skipped where what it needs is not installed."""

from __future__ import annotations

import pytest

from benchmarks.harness.loader_choice import FULL, LOADERS

_MISSING = {"saint": "torch-sparse", "cluster": "pymetis"}
# Settings for a graph of some dozens of nodes.
SMALL = {
    "neighbor": {"fan_out": (3, 2), "batch_size": 10},
    "cluster": {"num_parts": 6, "parts_per_batch": 2},
    "saint": {"batch_size": 8, "walk_length": 2, "coverage": 20},
    "random-nodes": {"num_parts": 3, "parts_per_batch": 1},
}


def needs(loader: str) -> pytest.MarkDecorator:
    """Skips a test where a loader's dependency is missing."""
    reason = f"{_MISSING.get(loader, 'nothing')} is not installed"
    return pytest.mark.skipif(not LOADERS[loader].is_there(), reason=reason)


EVERY = [pytest.param(name, marks=needs(name)) for name in LOADERS if name != FULL]
