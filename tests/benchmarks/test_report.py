"""The table's numbers, by hand."""

from __future__ import annotations

import copy
import math

import pytest

from benchmarks.harness.plots import plot_accuracy
from benchmarks.harness.report import format_report, group_rows, paired_difference

MIB = 2**20


def record(method: str, seed: int, accuracy: float, saved: int = 8 * MIB, **changes: object) -> dict:
    sketch = ("count_sketch", 0.1, True, "fp32") if method == "rmm" else (None,) * 4
    config = dict(zip(("sketch", "rate", "center", "codec"), sketch, strict=True))
    config |= {
        "method": method,
        "seed": seed,
        "layers": 2,
        "hidden": 8,
        "epochs": 3,
        "device": "cpu",
        "bn_momentum": 0.1,
    }
    made = {
        "features_are_stand_ins": False,
        "dataset": {
            "title": "tiny", "num_nodes": 1000, "num_edges": 2000, "num_features": 5, "num_classes": 3,
            "split": "the published split",
        },
        "config": config,
        "environment": {
            "device": "a processor", "threads": 2, "git_sha": "0123456789abcdef", "git_dirty": False,
            "packages": {"torch": "2", "torch-geometric": "3"},
        },
        "results": {
            "test_accuracy": accuracy, "saved_convolutions_bytes": saved, "saved_total_bytes": 2 * saved,
            "peak_bytes": 4 * saved, "peak_definition": "what is counted", "epoch_s": 0.25,
        },
        "curves": {"epochs": [1, 2, 3], "test": [0.1, 0.2, accuracy]},
    }  # fmt: skip
    return made | changes


@pytest.fixture
def records() -> list[dict]:
    return [
        record("baseline", 0, 0.70), record("rmm", 0, 0.69, 2 * MIB), record("baseline", 1, 0.72),
        record("rmm", 1, 0.72, 2 * MIB), record("baseline", 2, 0.71), record("rmm", 2, 0.73, 2 * MIB),
    ]  # fmt: skip


def cells(text: str, method: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {method} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows(records):
    text = format_report(records)
    assert cells(text, "baseline") == ["baseline", "-", "-", "-", "8", "16", "32", "0.25", "71.00 +- 1.00 (n=3)", "-"]
    # Differences -1, 0, +2: mean 1/3, standard deviation sqrt(7/3), t(2) = 4.3027.
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)
    interval = f"+0.33 [{1 / 3 - half:+.2f}, {1 / 3 + half:+.2f}]"
    assert cells(text, "rmm") == [
        "rmm", "count_sketch", "0.1", "yes", "2 (4.00x less)", "4 (4.00x less)", "8 (4.00x less)", "0.25",
        "71.33 +- 2.08 (n=3)", interval,
    ]  # fmt: skip


def test_pairs_are_matched_by_seed(records):
    shuffled = [records[5], records[1], records[3]]
    baseline = [records[2], records[0]]  # seeds 1 and 0 only
    mean, half, count = paired_difference(shuffled, baseline)
    assert mean == pytest.approx(-0.5) and count == 2
    assert half == pytest.approx(12.7062 * math.sqrt(0.5) / math.sqrt(2), rel=1e-4)
    assert paired_difference(records[1:2], records[:1])[1:] == (None, 1)
    assert paired_difference(records[1:2], records[2:3]) is None


def test_one_run_has_no_spread_and_no_interval(records):
    text = format_report(records[:2])
    assert cells(text, "baseline")[8] == "70.00 (n=1)"
    assert cells(text, "rmm")[9] == "-1.00"


def test_the_notes_say_what_was_measured(records):
    text = format_report(records)
    assert text.startswith("**tiny** (1,000 nodes")
    for words in ("fp32 mask", "what is counted", "a processor", "0123456789ab", "centred", "published split"):
        assert words in text
    gpu = copy.deepcopy(records)
    gpu[0]["config"]["device"] = "cuda"
    assert "fp32 mask" not in format_report(gpu)


def test_missing_peak_memory_is_not_invented(records):
    for entry in records:
        entry["results"]["peak_bytes"] = None
    assert cells(format_report(records), "rmm")[6] == "n/a"


def test_large_runs_are_in_gib(records):
    records[0]["results"]["peak_bytes"] = 2**34
    assert "peak memory [GiB]" in format_report(records)


def test_stand_ins_are_said(records):
    records = [entry | {"features_are_stand_ins": True} for entry in records]
    assert "not comparable with published" in format_report(records)


def test_groups_keep_the_order_of_the_sweep(records):
    uncentred = copy.deepcopy(records[1])
    uncentred["config"]["center"] = False
    assert list(group_rows([*records, uncentred])) == [
        ("baseline", None, None, None),
        ("rmm", "count_sketch", 0.1, True),
        ("rmm", "count_sketch", 0.1, False),
    ]


def test_more_than_the_baseline_is_said_to_be_more(records):
    records[0]["results"]["peak_bytes"] = records[1]["results"]["peak_bytes"] // 2
    text = format_report(records[:2])
    assert cells(text, "rmm")[6] == "8 (2.00x more)"


@pytest.mark.parametrize("count", [1, 6])
def test_the_picture_is_drawn(records, tmp_path, count: int):
    path = plot_accuracy(records[:count], tmp_path)
    assert path == tmp_path / "accuracy.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
