"""Tables, averages, notes and pictures from records."""

from __future__ import annotations

from pathlib import Path

from benchmarks.text.config import TextSweep
from benchmarks.text.plots import plot_curves
from benchmarks.text.report import format_report

MIB = 2**20


def record(task: str, method: str, seed: int, score: float, **changes: object) -> dict:
    """One finished run."""
    config = {
        "task": task, "method": method, "rate": None if method == "baseline" else 0.1, "seed": seed, "batch_size": 16,
        "lr": 1e-5, "precision": "fp32", "exclude": None, "row_mask": False, "track_memory": False,
    }  # fmt: skip
    cheap = method != "baseline"
    results = {
        "score": score, "steps": 100, "step_s": 0.25 if cheap else 0.5, "saved_bytes": (4 if cheap else 8) * MIB,
        "peak_bytes": 16 * MIB, "peak_definition": "what is counted", "constant_predictions": False,
    }  # fmt: skip
    return {
        "config": config | changes.pop("config", {}),
        "settings": "count_sketch 0.1 fp32" if cheap else "",
        "data": {"source": "files", "train_examples": 1000, "eval_examples": [200], "model": "a model"},
        "results": results | changes,
        "curves": {"step": [50, 100], "train_loss": [1.0, 0.5], "eval_loss": [0.9, None], "score": [50.0, score]},
        "environment": {
            "device": "a processor", "threads": 2, "git_sha": "0123456789abcdef", "git_dirty": True,
            "packages": {"torch": "2", "transformers": "5"},
        },
    }  # fmt: skip


RECORDS = [
    record("rte", "baseline", 0, 70.0), record("rte", "rmm", 0, 69.0), record("rte", "baseline", 1, 72.0),
    record("rte", "rmm", 1, 73.0), record("rte", "baseline", 2, 71.0), record("rte", "rmm", 2, 70.0),
]  # fmt: skip


def row(text: str, method: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {method} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_one_task():
    text = format_report(RECORDS)
    assert text.startswith(
        "**RTE**, accuracy x 100 on the development set (200 examples; 1,000 to train on): a model, 100 steps of 16, "
        "learning rate 1e-05, fp32\n"
    )
    assert row(text, "baseline") == ["baseline", "-", "71.00 +- 1.00 (n=3)", "-", "8", "16", "500"]
    # Differences -1, 1, -1: mean -1/3, deviation sqrt(4/3), t(0.975, 2) = 4.3027.
    assert row(text, "rmm") == [
        "rmm", "count_sketch 0.1 fp32", "70.67 +- 2.08 (n=3)", "-0.33 [-3.20, +2.54] (n=3)", "4 (0.50x)", "16 (1.00x)",
        "250 (0.50x)",
    ]  # fmt: skip
    assert "Average" not in text and "what is counted" in text and "predict one and the same" not in text
    assert "a processor, 2 threads, torch 2, transformers 5, commit 0123456789ab with uncommitted changes" in text


def test_only_common_seeds_are_paired():
    text = format_report([*RECORDS[:3], record("rte", "rmm", 5, 10.0)])
    assert row(text, "rmm")[3] == "-1.00 (n=1)"
    assert row(format_report(RECORDS[1:2]), "rmm")[3:5] == ["-", "4"]


def test_averages_over_tasks():
    more = [record("stsb", "baseline", seed, 80.0) for seed in (0, 1)]
    more += [record("stsb", "rmm", 0, 82.0), record("stsb", "rmm", 1, 84.0)]
    text = format_report([*RECORDS, *more])
    average = text[text.index("**Average over 2 tasks**") :]
    assert row(average, "baseline") == ["baseline", "-", "71.00", "80.00", "75.50", "-"]
    # Of seeds 0 and 1, which both tasks have: (-1 + 2)/2 and (1 + 4)/2; t(0.975, 1) = 12.706.
    assert row(average, "rmm")[2:] == ["70.67", "83.00", "76.83", "+1.50 [-11.21, +14.21] (n=2)"]
    assert "mean of pearson and spearman x 100" in text and "seeds that all tasks have" in text
    # A row that a task lacks has no average.
    assert "| rmm " not in format_report([*RECORDS, more[0]]).split("**Average")[1]


def test_notes_follow_the_runs():
    lean = record("rte", "rmm-lean", 0, 70.0, constant_predictions=True, peak_bytes=None)
    lean["config"] |= {"exclude": "classifier.*", "track_memory": True}
    text = format_report([lean])
    assert "Linear layers but those named classifier.* keep a sketch" in text and "rmm-lean: LayerNorm" in text
    assert "1 of 1 runs predict one and the same" in text and "watching memory is part of it" in text
    assert row(text, "rmm-lean")[5] == "n/a"
    assert "keep a sketch" not in format_report(RECORDS[:1])
    masked = record("rte", "rmm", 0, 70.0, config={"row_mask": True})
    assert "All linear layers keep a sketch of that share of their rows of tokens, padding left out" in format_report(
        [masked]
    )


def test_curves(tmp_path: Path):
    path = plot_curves([*RECORDS, record("stsb", "baseline", 0, 80.0)], tmp_path)
    assert path == tmp_path / "curves.png" and path.read_bytes().startswith(b"\x89PNG")


def test_rows_of_a_sweep():
    sweep = TextSweep(rate=(None, 0.5, 0.1), method=("rmm", "rmm-lean"), sketch=("count_sketch", "gaussian"), runs=2)
    runs = sweep.expand("mrpc", "cpu")
    assert len(runs) == 2 * (1 + 2 * 2 * 2) and len({run.key for run in runs}) == len(runs)
    assert [run.seed for run in runs] == [0] * 9 + [1] * 9
    assert runs[0].method == "baseline" and runs[0].settings == "" and runs[0].label == "mrpc baseline"
    assert runs[3].settings == "count_sketch 0.5 fp32, norm int2, act int4" and runs[1].norm_codec is None
    assert (
        TextSweep(center="off", codec=("int4",)).expand("mrpc", "cpu")[1].settings == "count_sketch 0.1 int4 uncentred"
    )
    # What only a sketch has does not make a baseline another run.
    assert TextSweep(center="off", exclude="x").expand("mrpc", "cpu")[0].key == TextSweep().expand("mrpc", "cpu")[0].key
