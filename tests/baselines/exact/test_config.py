"""The settings of EXACT and the bytes they announce."""

from __future__ import annotations

import pytest
import torch

from rmm_gnn.baselines.exact import ExactConfig


@pytest.mark.parametrize(
    ("kept_frac", "width", "kept"), [(0.125, 256, 32), (0.1, 256, 26), (1, 7, 7), (0.01, 5, 1), (0.5, 1, 1)]
)
def test_kept_features_are_rounded_up(kept_frac, width, kept):
    assert ExactConfig(kept_frac).kept_features(width) == kept


@pytest.mark.parametrize(
    ("bits", "row_bytes"), [(1, 4 + 8), (2, 8 + 8), (4, 16 + 8), (8, 32 + 8), (None, 4 * 32)], ids=str
)
def test_bytes_of_a_row_of_256_at_one_eighth(bits, row_bytes):
    assert ExactConfig(0.125, bits).saved_bytes(1000, 256) == 1000 * row_bytes + 8
    assert ExactConfig(0.125, bits).saved_bytes(0, 256) == 8


def test_without_rounding_the_type_of_the_input_counts():
    assert ExactConfig(0.5, None).saved_bytes(10, 8, torch.bfloat16) == 10 * 4 * 2 + 8


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"kept_frac": 0.0}, ValueError, r"'kept_frac' must lie in \(0, 1\] \(got 0.0\)"),
        ({"kept_frac": 1.5}, ValueError, r"'kept_frac' must lie in \(0, 1\] \(got 1.5\)"),
        ({"kept_frac": float("nan")}, ValueError, r"'kept_frac' must lie in \(0, 1\] \(got nan\)"),
        ({"kept_frac": "half"}, TypeError, r"'kept_frac' must be a number \(got str\)"),
        ({"kept_frac": True}, TypeError, r"'kept_frac' must be a number \(got bool\)"),
        ({"bits": 3}, ValueError, r"'bits' must be 1, 2, 4, 8 or None \(got 3\)"),
        ({"bits": 2.0}, TypeError, r"'bits' must be a whole number or None \(got 2.0\)"),
        ({"bits": True}, TypeError, r"'bits' must be a whole number or None \(got True\)"),
    ],
)
def test_errors(arguments, error, match):
    with pytest.raises(error, match=match):
        ExactConfig(**arguments)
