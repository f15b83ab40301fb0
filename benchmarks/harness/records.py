"""``records.jsonl``: one line per finished run, appended, never rewritten."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from benchmarks.harness import accounting
from benchmarks.harness.accounting import Block
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.methods import METHODS
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.train import TrainResult

SCHEMA = 3


def make_record(
    run: RunConfig, dataset: NodeDataset, environment: dict[str, Any], result: TrainResult
) -> dict[str, Any]:
    """Everything known about a finished run; accuracies are fractions, units are suffixes."""
    results = asdict(result)
    curves = {name: results.pop(name) for name in ("loss", "epochs", "valid", "test", "noise")}
    saved = results.pop("saved")
    results |= {
        "saved_convolutions_bytes": saved["convolutions"],
        "saved_total_bytes": saved["total"],
        "saved_host_bytes": saved["host"],
    }
    return {
        "schema": SCHEMA,
        "key": run.key,
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "features_are_stand_ins": dataset.features_are_stand_ins,
        "dataset": {
            "name": dataset.name,
            "title": dataset.title,
            "fingerprint": dataset.fingerprint,
            "num_nodes": dataset.num_nodes,
            "num_edges": dataset.num_edges,
            "num_features": dataset.x.shape[1],
            "num_classes": dataset.num_classes,
            "split": dataset.split_name,
        },
        "config": asdict(run),
        "settings": run.settings,
        "loading": run.loading,
        "method_config": METHODS[run.method].describe(run),
        "theory": _theory(run),
        "environment": environment,
        "results": results,
        "curves": curves,
    }


def _theory(run: RunConfig) -> dict[str, float | None]:
    block = Block(run.hidden, run.layers, run.shared_weights, dropout=run.dropout > 0)
    kept, stock = METHODS[run.method].theory(block, run), accounting.stock(block)
    return {"bytes_per_node_layer": kept, "stock_bytes_per_node_layer": stock, "ratio": stock / kept if kept else None}
