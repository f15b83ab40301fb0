"""What the reports that measure single steps have in common: flags, and a file of what is measured already."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.jsonl import append_record, read_lines
from benchmarks.reports.rows import EXACT, Row
from benchmarks.reports.run import default_out
from benchmarks.reports.workload import ATTENTIONS, BASE, TINY, Way
from benchmarks.text.methods import rmm_config

SCHEMA = "training step"
PACKAGES = ("rmm-gnn", "torch", "transformers")


def parser(name: str, summary: str) -> argparse.ArgumentParser:
    """The flags that both reports have."""
    made = argparse.ArgumentParser(
        prog=f"scripts/reproduce_{name}.sh", description=summary, allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    made.add_argument("--model", default=BASE, help=f"{BASE}, {TINY}, or whose sizes: a folder or hub name")
    made.add_argument(
        "--attention",
        default="eager",
        choices=ATTENTIONS,
        help="eager keeps its matrices; sdpa does not where it is fused (on CPU not with dropout)",
    )
    made.add_argument("--method", default="rmm", choices=("rmm", "rmm-lean"), help="rmm: linear layers alone")
    made.add_argument("--sketch", default="gaussian", help="family, with settings as sors:transform=dct")
    made.add_argument("--codec", default="fp32", help="how sketches are stored")
    made.add_argument("--center", default="off", choices=("on", "off"), help="centre inputs before sketching")
    made.add_argument("--rate", type=float, nargs="+", help="shares of rows kept, beside exact training")
    made.add_argument("--threads", type=int, help="CPU threads; unset: PyTorch's default")
    made.add_argument("--device", default="auto", help="auto | cpu | cuda | cuda:N")
    made.add_argument("--out", type=Path, help=f"folder; what is measured there is kept (unset: runs/reproduce/{name})")
    made.add_argument("--smoke", action="store_true", help="everything at tiny size: seconds, no data, no network")
    return made


def prepare(name: str, given: argparse.Namespace) -> tuple[list[Row], torch.device]:
    """Check the flags, fill ``out`` and set threads.

    Returns:
        Exact training and a row for every rate; the device.

    Raises:
        BenchmarkError: When something is missing or out of range.
    """
    for module in ("tabulate", "matplotlib", "tqdm"):
        require(module)
    if len(set(given.rate)) < len(given.rate):
        raise BenchmarkError(f"'rate' must name different values (got {given.rate}). Give each one once.")
    rows = [Row(given.method, rate, given.sketch, given.codec) for rate in sorted(given.rate, reverse=True)]
    try:
        for row in rows:
            rmm_config(Way(*row, center=given.center == "on"))
    except (TypeError, ValueError) as error:
        raise BenchmarkError(str(error)) from error
    if given.threads is not None:
        if given.threads < 1:
            raise BenchmarkError(f"'threads' must be at least 1 (got {given.threads}). Leave it out for the default.")
        torch.set_num_threads(given.threads)
    given.out = given.out or default_out(name, smoke=given.smoke)
    return [EXACT, *rows], environment.resolve_device(given.device)


def complete(
    out: Path,
    wanted: Iterable[dict[str, Any]],
    device: torch.device,
    measure: Callable[[dict[str, Any]], dict[str, Any]],
    warm_up: Callable[[], None],
) -> list[dict[str, Any]]:
    """Measure what ``out`` does not hold yet, recording each as soon as it is there.

    Args:
        out: Folder.
        wanted: What each measurement depends on, JSON-able.
        device: Recorded with each, as are versions and commit.
        measure: Takes one of ``wanted``; what it found.
        warm_up: Called before the first measurement.

    Returns:
        Records with ``config``, ``results`` and ``environment``, in the order of ``wanted``.
    """
    where = environment.describe(device, PACKAGES)
    place = {"device": where["device"], "threads": where["threads"]}
    done = {record["key"]: record for record in read_lines(out, SCHEMA)}
    keyed = {_key(config | place): config for config in wanted}
    todo = {key: config for key, config in keyed.items() if key not in done}
    if todo:
        warm_up()
    for key, config in require("tqdm").tqdm(todo.items(), desc="measuring", unit="setting", file=sys.stderr):
        found = {"config": config, "results": measure(config), "environment": where}
        done[key] = {"schema": SCHEMA, "key": key, **found}
        append_record(out, done[key])
    return [done[key] for key in keyed]


def sketch_note(row: Row, center: bool) -> str:
    """How inputs are kept here and in the paper."""
    return (
        f"Sketches: {row.method}, {row.sketch}, {'centred' if center else 'not centred'}, stored as {row.codec}; "
        "the paper's are Gaussian, not centred, stored as they are."
    )


def _key(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]


def check_positive(name: str, values: Sequence[int | None]) -> None:
    """Refuse a count below 1.

    Raises:
        BenchmarkError: When one is.
    """
    for value in values:
        if value is not None and value < 1:
            raise BenchmarkError(f"'{name}' must be at least 1 (got {value}). Give a positive number.")
