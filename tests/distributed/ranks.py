"""Runs checks on the ranks of distributed jobs: real processes that talk over gloo or NCCL.

One launcher imports what all jobs need, once, and forks their ranks; nothing in it has started a thread or touched a
GPU.  Every rank of a job runs the same checks in the same order and writes how each ended.  A rank whose check fails
leaves the job: the others, which may wait for it, get an error of the connection or run into its time-out, and leave.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

PASSED = "passed"
_RANK_S = 120  # how long a rank waits for the others
_LAUNCHER_S = 570


class Job(NamedTuple):
    """Checks, functions without arguments, by their names in a module, and how many ranks run them."""

    module: str
    world_size: int
    checks: tuple[str, ...]
    backend: str = "gloo"


def all_ranks(value: Any) -> list[Any]:
    """What ``value`` is on each rank."""
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def run(jobs: Sequence[Job], folder: Path, root: Path) -> dict[Job, dict[str, list[str]]]:
    """Run the jobs one after the other.

    Returns:
        For each job, and each of its checks that was begun, how it ended on each rank: "passed", or a traceback.  What
        the launcher printed stands under the name "".
    """
    command = [sys.executable, "-m", __name__, str(folder), json.dumps(jobs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "printed").open("w+") as printed:
        launcher = subprocess.Popen(command, cwd=root, env=environment, stdout=printed, stderr=subprocess.STDOUT)
        try:
            launcher.wait(_LAUNCHER_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            launcher.kill()
            launcher.wait()
        printed.seek(0)
        text = printed.read()
    return {job: _ended(folder / str(number), job) | {"": [text]} for number, job in enumerate(jobs)}


def _ended(folder: Path, job: Job) -> dict[str, list[str]]:
    ended: dict[str, list[str]] = {}
    for rank in range(job.world_size):
        written = folder / f"rank{rank}.jsonl"
        for line in written.read_text().splitlines() if written.exists() else []:
            name, outcome = json.loads(line)
            ended.setdefault(name, []).append(outcome)
    return ended


def assert_passed(ended: dict[str, list[str]], name: str, world_size: int) -> None:
    """The check passed on every rank; where not, say what every rank says of it."""
    outcomes = ended.get(name, [])
    failed = [f"rank {rank}:\n{outcome}" for rank, outcome in enumerate(outcomes) if outcome != PASSED]
    if not outcomes:
        earlier = [other for other, of in ended.items() if other and any(outcome != PASSED for outcome in of)]
        failed = [f"It was not run: the job ended in {', '.join(earlier) or 'its start'}.", *ended[""]]
    assert not failed, "\n".join(failed)
    assert len(outcomes) == world_size, f"{len(outcomes)} of {world_size} ranks came to its end\n{ended['']}"


def _rank(rank: int, job: Job, folder: Path) -> int:
    if job.backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        job.backend,
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=job.world_size,
        timeout=timedelta(seconds=_RANK_S),
    )
    module = importlib.import_module(job.module)
    with (folder / f"rank{rank}.jsonl").open("w", buffering=1) as file:
        for name in job.checks:
            torch.manual_seed(0)
            try:
                getattr(module, name)()
                dist.barrier()  # no rank goes on to the next check where another one fails in this
            except BaseException:
                file.write(json.dumps([name, traceback.format_exc()]) + "\n")
                return 1
            file.write(json.dumps([name, PASSED]) + "\n")
    dist.destroy_process_group()
    return 0


def _fork(rank: int, job: Job, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        code = _rank(rank, job, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # past the launcher's own clean-up, and past threads that wait for a rank that left


def main(folder: str, jobs: str) -> None:
    """Fork the ranks of each job, and wait for them."""
    torch.set_num_threads(1)
    described = [Job(*job) for job in json.loads(jobs)]
    for job in described:
        importlib.import_module(job.module)
    for number, job in enumerate(described):
        own = Path(folder) / str(number)
        own.mkdir()
        for child in [_fork(rank, job, own) for rank in range(job.world_size)]:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
