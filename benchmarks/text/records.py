"""``records.jsonl`` of fine-tuning runs."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from benchmarks.text.methods import rmm_config
from benchmarks.text.run_config import TextRun
from benchmarks.text.train import Prepared, TrainResult

SCHEMA = "glue-1"


def make_record(run: TextRun, data: Prepared, environment: dict[str, Any], result: TrainResult) -> dict[str, Any]:
    """Everything known about a finished run; the score is times 100, metrics are fractions, units are suffixes."""
    return {
        "schema": SCHEMA,
        "key": run.key,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": asdict(run),
        "settings": run.settings,
        "method_config": None if run.rate is None else rmm_config(run).to_dict(),
        "data": {
            "source": data.data_source,
            "train_examples": len(data.train),
            "eval_examples": [len(split) for split in data.evaluations],
            "model": data.source.title,
        },
        "results": result.results,
        "curves": result.curves,
        "memory": result.memory,
        "noise": result.noise,
        "environment": environment,
    }
