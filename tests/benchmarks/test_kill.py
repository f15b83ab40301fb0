"""Commands that are killed at random moments and resumed leave what one that was not killed leaves, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.killing import MOMENTS
from tests.benchmarks.test_resume import equal

ROOT = Path(__file__).resolve().parents[2]
COSTS = {
    "epoch_s", "wall_s", "checkpoint_s", "peak_bytes", "resumptions", "step_s", "train_s", "examples_per_s"
}  # fmt: skip
DIGITS = ["--dataset", "digits", "--layers", "2", "--hidden", "16", "--runs", "1", "--rate", "0.2", "--threads", "1"]
ADAPTIVE = "rmm-lean:adaptive=rate,noise-target=4,codec=int8"
METHODS = ["baseline", "rmm:sketch=importance_sampling", ADAPTIVE]
GLUE = [
    "--smoke", "--task", "sst2", "--runs", "1", "--rate", "none", "0.5", "--method", "rmm", "rmm-lean", "--sketch",
    "importance_sampling", "--batch-size", "8", "--max-steps", "10", "--eval-every-steps", "4", "--threads", "1",
]  # fmt: skip


def play(tasks: list[dict[str, Any]]) -> list[int]:
    """How the processes ended."""
    command = [sys.executable, "-m", "tests.benchmarks.killing", json.dumps(tasks)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-4000:]
    return json.loads(done.stdout)


def records(out: Path) -> dict[str, Any]:
    """What was recorded, but for when, where and at what cost."""
    found = {}
    for line in (out / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        record["results"] = {name: value for name, value in record["results"].items() if name not in COSTS}
        for name in ("finished", "environment"):
            del record[name]
        if record.get("memory"):
            del record["memory"]["resident_bytes"]
        assert record["key"] not in found
        found[record["key"]] = record
    return found


def check(folder: Path, command: str, arguments: list[str], kills: list[tuple[int, str]]) -> None:
    """Run once undisturbed, and once with these kills, each followed by ``--resume``; compare all that is left."""
    tasks = []
    for name in ("whole", "killed"):
        (folder / f"{name}-states").mkdir(parents=True)
    common = {"command": command, "states": str(folder / "whole-states")}
    tasks.append(common | {"arguments": [*arguments, "--checkpoint-every", "0", "--out", str(folder / "whole")]})
    given = [*arguments, "--out", str(folder / "killed")]
    common["states"] = str(folder / "killed-states")
    for number, (at, moment) in enumerate([*kills, (0, "")]):
        # Not every epoch: some of what was done has to be done again.
        every = ["--checkpoint-every", str(1 + number % 3)]
        task = common | {"arguments": [*given, *every, *(["--resume"] if number else [])]}
        tasks.append(task | ({"at": at, "moment": moment} if moment else {}))
    codes = play(tasks)
    assert codes == [0, *[-signal.SIGKILL] * len(kills), 0]
    whole, killed = records(folder / "whole"), records(folder / "killed")
    assert whole and killed == whole
    assert sorted(path.name for path in (folder / "killed").iterdir()) == sorted(
        path.name for path in (folder / "whole").iterdir()
    )  # no checkpoint and no temporary file is left
    for key in whole:
        one, other = (
            torch.load(folder / f"{name}-states" / f"{key}.pt", weights_only=True) for name in ("whole", "killed")
        )
        assert equal(one, other), key
    resumed = [json.loads(line)["results"]["resumptions"] for line in (folder / "killed" / "records.jsonl").open()]
    assert sum(resumed) > 0


def test_a_killed_command_goes_on_bit_for_bit(tmp_path):
    generator = random.Random(0)
    kills = [(generator.randint(3, 12), "writing"), (generator.randint(3, 12), "before the step"), (1, "recorded")]
    check(tmp_path, "ogbn_arxiv", [*DIGITS, "--epochs", "16", "--method", *METHODS[1:]], kills)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(10))
def test_random_kills_of_the_graph_benchmark(tmp_path, number: int):
    generator = random.Random(1000 + number)
    # In 3 x 30 epochs, 4 kills that leave at least 30 of them to the last process.
    kills = [(generator.randint(2, 15), generator.choice(MOMENTS)) for _ in range(4)]
    kills = [(at, moment) for at, moment in kills if moment not in ("half a record", "recorded")] + [
        (1, generator.choice(("half a record", "recorded")))
    ]
    print(f"kills: {kills}")
    check(tmp_path, "ogbn_arxiv", [*DIGITS, "--epochs", "30", "--method", *METHODS], kills)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_random_kills_of_the_fine_tuning_benchmark(tmp_path, number: int):
    generator = random.Random(2000 + number)
    kills = [(generator.randint(2, 8), generator.choice(MOMENTS[:5])) for _ in range(3)]
    print(f"kills: {kills}")
    check(tmp_path, "glue", GLUE, [*kills, (1, generator.choice(("half a record", "recorded")))])
