"""``records.jsonl``: one line per finished run, appended, never rewritten."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.harness import accounting
from benchmarks.harness.accounting import Block
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.methods import METHODS
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.train import TrainResult

SCHEMA = 3
FILE = "records.jsonl"


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


def append_record(folder: Path, record: dict[str, Any]) -> None:
    """Write one line, whole or not at all as far as a reader can tell, and force it to disk.

    Args:
        folder: Made if it is not there.
        record: JSON-able; a number that is not finite becomes null.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_finite(record), allow_nan=False) + "\n"
    with open(folder / FILE, "ab+") as file:
        _drop_torn_line(file)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The finished runs in a folder; a last line cut short by a crash is passed over.

    Args:
        folder: May lack the file, or not exist.

    Returns:
        Records in the order written.

    Raises:
        BenchmarkError: When another line is damaged, or the file is of another schema.
    """
    path = folder / FILE
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a torn line
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            schema = record["schema"]
        except (ValueError, KeyError, TypeError) as error:
            raise BenchmarkError(
                f"'{path}' is damaged at line {number} ({error}). Remove that line, or choose another --out."
            ) from error
        if schema != SCHEMA:
            raise BenchmarkError(
                f"'{path}' must have schema {SCHEMA} (got {schema} at line {number}). Choose another --out."
            )
        records.append(record)
    return records


def _drop_torn_line(file: Any) -> None:
    """Cut what follows the last newline, or the next record would be glued to it."""
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _finite(value: Any) -> Any:
    """JSON has no inf or nan; a run that diverged still gets its record."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
