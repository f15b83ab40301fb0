"""Run what was asked for, keep what is finished, show the table."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from benchmarks.harness import datasets, environment
from benchmarks.harness.config import Sweep
from benchmarks.harness.datasets.base import NodeDataset
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.files import write_text
from benchmarks.harness.frontier import plot_frontier
from benchmarks.harness.jsonl import FILE, append_record, finished_runs
from benchmarks.harness.loader_choice import FULL, check_run, require_loader
from benchmarks.harness.methods import METHODS
from benchmarks.harness.out_folder import out_folder
from benchmarks.harness.out_of_memory import explain, out_of_memory_text, report_out_of_memory
from benchmarks.harness.plots import plot_accuracy, plot_noise
from benchmarks.harness.ranks import INTERRUPTED, Ranks
from benchmarks.harness.records import SCHEMA, make_record
from benchmarks.harness.report import format_report
from benchmarks.harness.run_checkpoints import RunCheckpoints, check_unfinished, clear_checkpoints, say_others
from benchmarks.harness.run_config import RunConfig
from benchmarks.harness.train import train

OUT_OF_MEMORY = 2
NO_ROOM = "Choose a smaller data set, --device cpu, or a --loader, which moves a batch at a time."


def run_sweep(sweep: Sweep, ranks: Ranks | None = None) -> int:
    """Load the data, train every run that has no record yet, write table and picture.

    Nothing is written before the first run's first checkpoint or record, so that a command that cannot work leaves no
    folder.

    Args:
        sweep: The resolved configuration.
        ranks: This process, among those that train together: the first evaluates and writes.

    Returns:
        Exit code: 0, 2 where a run did not fit into memory, or 130 after Ctrl-C.

    Raises:
        BenchmarkError: When the user has something to put right.
    """
    ranks = ranks or Ranks()
    out = ranks.of_first(sweep.out_dir())
    device, done = ranks.agree(lambda: _prepared(sweep, ranks, out))
    dataset = _loaded(sweep, ranks)
    runs = sweep.expand(dataset.fingerprint, str(device), ranks.world_size)
    finished = ranks.of_first(list(done))  # another machine need not see the folder
    todo = [run for run in runs if run.key not in finished]
    if sweep.resume:
        print(f"{len(runs) - len(todo)} of {len(runs)} runs are recorded in {out}.", file=sys.stderr)
        if ranks.is_first:
            say_others(out, [*done, *(run.key for run in runs)])
    processes = f" in {ranks.world_size} processes" if ranks.world_size > 1 else ""
    print(f"{dataset.title}: {len(todo)} runs on {device}{processes}", file=sys.stderr)
    code = 0
    # Batches are sampled where the graph is, and moved one by one.
    data = _moved(dataset, device) if sweep.loader == FULL else dataset
    where = environment.describe(device)
    with ExitStack() as stack:
        if ranks.is_first:
            ranks.agree(lambda: stack.enter_context(out_folder(out)))
            clear_checkpoints(out, done)
        else:
            ranks.agree(lambda: None)
        try:
            for number, run in enumerate(todo, start=1):
                checkpoints = RunCheckpoints(out, run.key, every=sweep.checkpoint_every, resume=sweep.resume)
                position = f"[{number}/{len(todo)}]"
                try:
                    result = train(run, data, position=position, checkpoints=checkpoints, ranks=ranks)
                except torch.OutOfMemoryError as error:
                    said = str(error)
                else:
                    said = None
                if said is not None:  # out of the handler: the error holds what the run held
                    name, code = f"{position} {run.label} seed {run.seed}", OUT_OF_MEMORY
                    if ranks.world_size > 1:  # the others wait for a step that will not come
                        raise BenchmarkError(out_of_memory_text(name, said, partial(explain, run, dataset)))
                    report_out_of_memory(name, said, partial(explain, run, dataset))
                    continue
                if ranks.is_first:
                    record = make_record(run, dataset, where, result)
                    append_record(out, record)
                    checkpoints.remove()
                    done[run.key] = record
            if sweep.ledger and ranks.is_first and not _write_ledgers(runs, data, out):
                code = OUT_OF_MEMORY
        except KeyboardInterrupt:
            print(f"\nInterrupted. Finished runs are kept; continue with --resume --out {out}", file=sys.stderr)
            code = INTERRUPTED
        if ranks.is_first:
            _show(runs, done, out)
    return code


def _prepared(sweep: Sweep, ranks: Ranks, out: Path) -> tuple[torch.device, dict[str, dict]]:
    """The device, and the records in the folder, after all that can be checked before data are read."""
    for module in ("tabulate", "matplotlib", "scipy"):
        require(module)  # needed only at the end, but better missed now than after the last run
    device = ranks.device(environment.resolve_device(sweep.device))
    for run in sweep.expand("", str(device), ranks.world_size):
        try:
            check_run(run)
            METHODS[run.method].check(run)
        except (TypeError, ValueError) as error:
            raise BenchmarkError(str(error)) from error
    require_loader(sweep.loader)
    done = finished_runs(out, SCHEMA, resume=sweep.resume)
    check_unfinished(out, resume=sweep.resume)
    if sweep.threads is not None:
        torch.set_num_threads(sweep.threads)
    return device, done


def _loaded(sweep: Sweep, ranks: Ranks) -> NodeDataset:
    """The data; the first process of each machine reads them before the others, since the first time writes files."""

    def load() -> NodeDataset:
        return datasets.load(sweep.dataset, sweep.root, sweep.download)

    first = ranks.local_rank == 0
    read = ranks.agree(lambda: load() if first else None)
    dataset = ranks.agree(lambda: read or load())
    ranks.same("dataset", dataset.fingerprint)
    return dataset


def _moved(dataset: NodeDataset, device: torch.device) -> NodeDataset:
    """The data on a device.

    Raises:
        BenchmarkError: When they do not fit there: then no run does.
    """
    try:
        return dataset.to(device)
    except torch.OutOfMemoryError as error:
        said = str(error).splitlines()[0]
        raise BenchmarkError(f"{dataset.title} does not fit into the memory of {device} ({said}). {NO_ROOM}") from None


def _write_ledgers(runs: list[RunConfig], dataset: NodeDataset, out: Path) -> bool:
    """Write those that are not there yet; returns whether all could be measured."""
    from benchmarks.harness.ledger import ledger_stem, write_ledger

    fit = True
    for stem, run in {ledger_stem(run): run for run in reversed(runs)}.items():  # of a row's runs, the first
        if (out / f"{stem}.txt").exists():
            continue
        try:
            write_ledger(run, dataset, out)
        except torch.OutOfMemoryError as error:
            said = str(error).splitlines()[0]
            print(f"error: {stem}.txt could not be made: out of memory ({said}). The others go on.", file=sys.stderr)
            fit = False
            continue
        print(f"Wrote {stem}.txt, .json and .png in {out}", file=sys.stderr)
    return fit


def _show(runs: list[RunConfig], done: dict[str, dict], out: Path) -> None:
    records = [done[run.key] for run in runs if run.key in done]
    if not records:
        print("No run has finished.", file=sys.stderr)
        return
    text = format_report(records)
    if len(records) < len(runs):
        text += f"- Incomplete: {len(records)} of {len(runs)} runs.\n"
    write_text(out / "table.md", text)
    pictures = [draw(records, out).name for draw in (plot_accuracy, plot_frontier)]
    pictures += [path.name for path in plot_noise(records, out)]
    print(f"\n{text}\nWrote {', '.join([FILE, 'table.md', *pictures])} in {out}")
