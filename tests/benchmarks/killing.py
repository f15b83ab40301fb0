"""Runs commands of the benchmarks one after the other, each in a process of its own that kills itself where asked.

    python -m tests.benchmarks.killing '[{"command": "ogbn_arxiv", "arguments": ["--smoke"], "at": 3,
        "moment": "writing"}]'

``at`` counts the epochs (or steps) that the process trains, ``moment`` is one of `MOMENTS`; without them the command
ends by itself.  ``states`` names a folder in which the final state of every finished run is stored.  Prints how each
process ended, as JSON: its exit code, or less the number of the signal.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from benchmarks.harness import checkpoints, jsonl, run_checkpoints, training
from benchmarks.text import training as text_training

MOMENTS = (
    "before the step",  # after backward, before the optimizer moves
    "after the step",  # the optimizer has moved, nothing is evaluated
    "writing",  # half a checkpoint is in the temporary file
    "written",  # the checkpoint is whole, and not yet in its place
    "in place",  # the checkpoint has just taken its place
    "half a record",  # of a run that has ended
    "recorded",  # the record is written, the checkpoint not yet deleted
)

_HEAVY = ("matplotlib.pyplot", "scipy.stats", "sklearn.datasets", "sklearn.neighbors")


def kill() -> NoReturn:
    """End this process as a crash does: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def arm(at: int, moment: str) -> None:
    """Have this process kill itself once it has trained ``at`` epochs or steps and comes to ``moment``."""
    done = [0]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def count(*args: Any) -> Any:
            done[0] += 1
            return function(*args)

        return count

    training.Training.run_epoch = counted(training.Training.run_epoch)
    text_training.FineTuning.run_step = counted(text_training.FineTuning.run_step)

    def if_due(*_: object) -> None:
        if done[0] >= at:
            kill()

    if moment == "before the step":
        register_optimizer_step_pre_hook(if_due)
    elif moment == "after the step":
        register_optimizer_step_post_hook(if_due)
    elif moment == "writing":
        write = checkpoints._Hashed.write

        def half(self: Any, data: Any) -> int:
            if done[0] >= at and self.num_bytes > 0:
                self._file.write(bytes(memoryview(data))[: memoryview(data).nbytes // 2])
                self._file.flush()
                kill()
            return write(self, data)

        checkpoints._Hashed.write = half
    elif moment in ("written", "in place"):
        replace = os.replace

        def replaced(source: Any, target: Any) -> None:
            if moment == "in place":
                replace(source, target)
            if_due()
            if moment == "written":
                replace(source, target)

        os.replace = replaced
    elif moment == "half a record":

        def torn(file: Any) -> int:
            file.seek(0, os.SEEK_END)
            file.write(b'{"schema": 3, "key": "torn')
            kill()

        jsonl._drop_torn_line = torn
    elif moment == "recorded":
        run_checkpoints.RunCheckpoints.remove = lambda self: kill()
    else:
        raise ValueError(moment)


def store_states(folder: Path) -> None:
    """Store what every run that ends in this process holds, its costs left out, by its key."""
    for kind in (training.Training, text_training.FineTuning):
        result = kind.result

        def stored(self: Any, result: Callable[..., Any] = result) -> Any:
            state = self.state_dict()
            del state["parts"]["costs"]
            if "memory" in state["parts"]:
                del state["parts"]["memory"]["_resident"]
            torch.save(state, folder / f"{self._run.key}.pt")
            return result(self)

        kind.result = stored


def run(task: dict[str, Any]) -> int:
    """Run one command in a process of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.dup2(2, 1)  # what a command prints is of no use here
            if "states" in task:
                store_states(Path(task["states"]))
            if "at" in task:
                arm(task["at"], task["moment"])
            code = importlib.import_module(f"benchmarks.{task['command']}").main(task["arguments"])
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    # Imported before the first fork, so that it is done once; no process has computed anything by then.
    for module in (
        "benchmarks.text.sweep",
        "matplotlib.pyplot",
        "sklearn.datasets",
        "sklearn.neighbors",
        "scipy.stats",
    ):
        importlib.import_module(module)
    print(json.dumps([run(task) for task in json.loads(sys.argv[1])]))
