"""The table's numbers, by hand."""

from __future__ import annotations

import copy
import math

import pytest

from benchmarks.harness.plots import plot_accuracy
from benchmarks.harness.report import format_report
from benchmarks.harness.rows import group_rows, paired_difference

MIB = 2**20


def cells(text: str, method: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {method} ")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows(records):
    text = format_report(records)
    assert cells(text, "baseline") == ["baseline", "-", "8", "16", "136", "32", "0.25", "71.00 +- 1.00 (n=3)", "-"]
    # Differences -1, 0, +2: mean 1/3, standard deviation sqrt(7/3), t(2) = 4.3027.
    half = 4.302653 * math.sqrt(7 / 3) / math.sqrt(3)
    interval = f"+0.33 [{1 / 3 - half:+.2f}, {1 / 3 + half:+.2f}]"
    assert cells(text, "rmm") == [
        "rmm", "count_sketch 0.1 fp32", "2 (4.00x less)", "4 (4.00x less)", "100 (1.36x less)", "8 (4.00x less)",
        "0.25 (1.00x)", "71.33 +- 2.08 (n=3)", interval,
    ]  # fmt: skip


def test_time_is_compared_with_the_baseline(records):
    for entry in records[::2]:
        entry["results"]["epoch_s"] = 0.2
    assert cells(format_report(records), "rmm")[6] == "0.25 (1.25x)"
    assert cells(format_report(records[1::2]), "rmm")[2:7] == ["2", "4", "100 (1.36x less)", "8", "0.25"]


def test_what_only_the_host_keeps_is_said(records):
    for entry in records[1::2]:
        entry["config"]["method"] = "offload"
        entry["results"] |= {"saved_convolutions_bytes": None, "saved_total_bytes": 0, "saved_host_bytes": 5 * MIB}
    assert cells(format_report(records), "offload")[2:4] == ["n/a", "0 + 5 on the host"]
    for entry in records[1::2]:
        entry["results"] |= {"saved_total_bytes": 16 * MIB, "saved_host_bytes": 100}
    assert cells(format_report(records), "offload")[3] == "16 (the same)"


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
    assert cells(text, "baseline")[7] == "70.00 (n=1)"
    assert cells(text, "rmm")[8] == "-1.00"


def test_the_notes_say_what_was_measured(records):
    text = format_report(records)
    assert text.startswith("**tiny** (1,000 nodes")
    for words in (
        "fp32 mask", "what is counted", "a processor", "0123456789ab", "centred", "published split", "stock PyG's 136",
        "rmm: randomised", "share of the rows",
    ):  # fmt: skip
        assert words in text
    assert "exact:" not in text and "offload" not in text
    assert "centred" not in format_report(records[::2]) and "Rates" not in format_report(records[::2])
    gpu = copy.deepcopy(records)
    gpu[0]["config"]["device"] = "cuda"
    assert "fp32 mask" not in format_report(gpu)


def test_missing_peak_memory_is_not_invented(records):
    for entry in records:
        entry["results"]["peak_bytes"] = None
    assert cells(format_report(records), "rmm")[5] == "n/a"


def test_large_runs_are_in_gib(records):
    records[0]["results"]["peak_bytes"] = 2**34
    assert "peak memory [GiB]" in format_report(records)


def test_stand_ins_are_said(records):
    records = [entry | {"features_are_stand_ins": True} for entry in records]
    assert "not comparable with published" in format_report(records)


def test_a_method_s_own_note_is_there_with_it(records):
    for entry in records[1::2]:
        entry["config"]["method"] = "offload"
    assert "On CPU offload moves nothing" in format_report(records)
    for entry in records:
        entry["config"]["device"] = "cuda"
    text = format_report(records)
    assert "On CPU" not in text and "save_on_cpu" in text


def test_groups_keep_the_order_of_the_sweep(records):
    uncentred = copy.deepcopy(records[1])
    uncentred["settings"] += " uncentred"
    assert list(group_rows([*records, uncentred])) == [
        ("baseline", ""),
        ("rmm", "count_sketch 0.1 fp32"),
        ("rmm", "count_sketch 0.1 fp32 uncentred"),
    ]


def test_more_than_the_baseline_is_said_to_be_more(records):
    records[0]["results"]["peak_bytes"] = records[1]["results"]["peak_bytes"] // 2
    text = format_report(records[:2])
    assert cells(text, "rmm")[5] == "8 (2.00x more)"


@pytest.mark.parametrize("count", [1, 6])
def test_the_picture_is_drawn(records, tmp_path, count: int):
    path = plot_accuracy(records[:count], tmp_path)
    assert path == tmp_path / "accuracy.png"
    assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
