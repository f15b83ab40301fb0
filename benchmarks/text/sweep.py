"""Run what was asked for, keep what is finished, show the tables."""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import environment
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.files import write_text
from benchmarks.harness.jsonl import FILE, append_record, finished_runs
from benchmarks.harness.out_folder import out_folder
from benchmarks.harness.out_of_memory import report_out_of_memory
from benchmarks.harness.run_checkpoints import RunCheckpoints, check_unfinished, clear_checkpoints, say_others
from benchmarks.text import synthetic
from benchmarks.text.config import TextSweep
from benchmarks.text.data import encode, load
from benchmarks.text.examples import TaskData
from benchmarks.text.methods import rmm_config
from benchmarks.text.models import ModelSource, open_model
from benchmarks.text.noise import probed_layer
from benchmarks.text.out_of_memory import explain
from benchmarks.text.plots import plot_curves
from benchmarks.text.records import SCHEMA, make_record
from benchmarks.text.report import format_report
from benchmarks.text.run_config import TextRun
from benchmarks.text.train import Prepared, build_model, train

INTERRUPTED = 130
OUT_OF_MEMORY = 2
_PACKAGES = (
    "rmm-gnn", "torch", "transformers", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn", "triton"
)  # fmt: skip


def run_sweep(sweep: TextSweep) -> int:
    """Load data and model, train every run that has no record yet, write tables and picture.

    Nothing is written before the first run's first checkpoint or record, so that a command that cannot work leaves no
    folder.

    Args:
        sweep: The resolved configuration.

    Returns:
        Exit code: 0, 2 where a run did not fit into memory, or 130 after Ctrl-C.

    Raises:
        BenchmarkError: When the user has something to put right.
    """
    for module in ("tabulate", "matplotlib", "scipy", "sklearn", "tqdm"):
        require(module)  # some are needed only at the end, but better missed now than after the last run
    require("transformers", extras="benchmarks,transformers")
    device = environment.resolve_device(sweep.device)
    _check(sweep, device)
    out = sweep.out_dir()
    done = finished_runs(out, SCHEMA, resume=sweep.resume)
    check_unfinished(out, resume=sweep.resume)
    if sweep.threads is not None:
        torch.set_num_threads(sweep.threads)
    asked: list[tuple[TaskData, ModelSource, list[TextRun]]] = []
    for name, data in _load(sweep).items():
        source = open_model(sweep.model, data, sweep.attention_dropout)
        if sweep.max_length > source.max_length:
            raise BenchmarkError(
                f"'max_length' must not exceed {source.max_length}, what the model reads (got {sweep.max_length}). "
                "Give a smaller one."
            )
        asked.append((data, source, sweep.expand(name, str(device), data.fingerprint, source.fingerprint)))
    _try_methods(*asked[0][1:])
    runs = [run for _, _, of_task in asked for run in of_task]
    left = sum(run.key not in done for run in runs)
    if sweep.resume:
        print(f"{len(runs) - left} of {len(runs)} runs are recorded in {out}.", file=sys.stderr)
        say_others(out, [*done, *(run.key for run in runs)])
    print(f"GLUE {' '.join(sweep.task)}, {asked[0][1].title}: {left} runs on {device}", file=sys.stderr)
    where, code, number = environment.describe(device, _PACKAGES), 0, 0
    with out_folder(out):
        clear_checkpoints(out, done)
        try:
            for data, source, of_task in asked:
                todo = [run for run in of_task if run.key not in done]
                prepared = _prepare(data, source, sweep.max_length) if todo else None
                for run in todo:
                    assert prepared is not None
                    number += 1
                    checkpoints = RunCheckpoints(out, run.key, every=sweep.checkpoint_every, resume=sweep.resume)
                    position = f"[{number}/{left}]"
                    try:
                        result = train(run, prepared, position=position, checkpoints=checkpoints)
                    except torch.OutOfMemoryError as error:
                        said = str(error)
                    else:
                        said = None
                    if said is not None:  # out of the handler: the error holds what the run held
                        name, code = f"{position} {run.label} seed {run.seed}", OUT_OF_MEMORY
                        report_out_of_memory(name, said, partial(explain, run, prepared))
                        continue
                    record = make_record(run, prepared, where, result)
                    append_record(out, record)
                    checkpoints.remove()
                    done[run.key] = record
        except KeyboardInterrupt:
            print(f"\nInterrupted. Finished runs are kept; continue with --resume --out {out}", file=sys.stderr)
            code = INTERRUPTED
        _show(runs, done, out)
    return code


def _check(sweep: TextSweep, device: torch.device) -> None:
    """What can be told before data are read."""
    if sweep.precision == "fp16" and device.type != "cuda":
        raise BenchmarkError(f"'precision' must be fp32 or bf16 on {device.type} (got fp16). Use --precision bf16.")
    for run in sweep.expand(sweep.task[0], str(device)):
        try:
            rmm_config(run, 0.5)
        except (TypeError, ValueError) as error:
            raise BenchmarkError(str(error)) from error


def _load(sweep: TextSweep) -> dict[str, TaskData]:
    """All tasks at once: what is wrong with the last one shall not show after the runs of the others."""
    if not sweep.smoke or sweep.data_dir is not None:
        return {name: _sampled(load(name, sweep.data_dir), sweep) for name in sweep.task}
    with tempfile.TemporaryDirectory() as folder:
        for name in sweep.task:
            synthetic.write_task(name, Path(folder))
        found = {name: load(name, folder) for name in sweep.task}
    return {name: _sampled(replace(data, source="made-up sentences"), sweep) for name, data in found.items()}


def _try_methods(source: ModelSource, runs: list[TextRun]) -> None:
    """Whether the methods can be applied to the model, told before the first run and not after the baseline's."""
    for run in {run.method: run for run in runs}.values():
        try:
            model, _ = build_model(run, source)
        except (TypeError, ValueError) as error:
            raise BenchmarkError(str(error)) from error
        if run.probe_every is not None:
            probed_layer(model, run.probe_layer)


def _sampled(data: TaskData, sweep: TextSweep) -> TaskData:
    return data.sample(sweep.train_examples, sweep.eval_examples)


def _prepare(data: TaskData, source: ModelSource, max_length: int) -> Prepared:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else it warns where a process is forked
    train, *evaluations = (
        encode(data.task, split, source.tokenizer, max_length) for split in (data.train, *data.evaluations)
    )
    return Prepared(train, tuple(evaluations), source, data.source)


def _show(runs: list[TextRun], done: dict[str, dict[str, Any]], out: Path) -> None:
    records = [done[run.key] for run in runs if run.key in done]
    if not records:
        print("No run has finished.", file=sys.stderr)
        return
    text = format_report(records)
    if len(records) < len(runs):
        text += f"- Incomplete: {len(records)} of {len(runs)} runs.\n"
    write_text(out / "report.md", text)
    picture = plot_curves(records, out)
    print(f"\n{text}\nWrote {FILE}, report.md, {picture.name} in {out}")
