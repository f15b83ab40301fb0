"""Jobs of several processes: who prints, how an error ends them, and that training is one and the same in all."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.ranks import Ranks, run_ranks

# Each process runs these one after the other, and says how each ended.
SCENARIOS = """
import os, sys
import torch.distributed
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.ranks import run_ranks
from benchmarks.ogbn_arxiv import main

def fails_on_the_second(ranks):
    def work():
        if ranks.rank == 1:
            raise BenchmarkError("the disk is full")
    ranks.agree(work)

def differs(ranks):
    ranks.same("dataset", f"fingerprint {ranks.rank}")

def prints(ranks):
    print("printed"), print("warned", file=sys.stderr)
    assert ranks.total(1, ranks.rank) == [2, 1] and ranks.of_first(ranks.rank) == 0
    return 0

def fails_alone(ranks):
    if ranks.rank == 1:
        raise BenchmarkError("nobody else knows")
    return 130  # as where the others are told to stop

def refused_on_the_second(ranks):
    ranks.agree(lambda: open("taken", "w") if ranks.rank == 1 else None)

def refused_alone(ranks):
    if ranks.rank == 1:
        open(".", "w")
    return 130

def alone(work):
    code = run_ranks(work, "")
    torch.distributed.destroy_process_group()  # which the end of a process would else do
    return code

def resumes(ranks):
    import pathlib, torch
    from dataclasses import replace
    from benchmarks.harness.config import resolve
    from benchmarks.harness.datasets.base import NodeDataset
    from benchmarks.harness.propagation import normalized_adjacency
    from benchmarks.harness.run_checkpoints import RunCheckpoints
    from benchmarks.harness.sampled_training import SampledTraining
    from benchmarks.harness.train import train

    torch.manual_seed(0)
    edges = torch.randint(60, (2, 240))
    data = NodeDataset("tiny", "tiny", torch.randn(60, 5), torch.arange(60) % 3, normalized_adjacency(edges, 60), 3)
    small = {"loader": "neighbor", "method": ("rmm-lean",), "layers": 2, "hidden": 8, "epochs": 4, "batch_size": 1}
    run = replace(resolve(small).expand("", "cpu")[0], world_size=2)
    whole = train(run, data, quiet=True, ranks=ranks)
    first = SampledTraining(run, data, ranks=ranks)
    first.run_epoch(), first.run_epoch()
    folder = pathlib.Path(f"of process {ranks.rank}")  # the second process sees no file of the first
    folder.mkdir()
    if ranks.is_first:
        RunCheckpoints(folder, run.key, every=1).write(first.state_dict())
    torch.rand(7 + ranks.rank)
    again = train(run, data, quiet=True, ranks=ranks, checkpoints=RunCheckpoints(folder, run.key, resume=True))
    assert again.resumptions == 1 and len(set(again.sampling["digests"])) == 1
    assert (again.loss, again.valid, again.test) == (whole.loss, whole.valid, whole.test)
    assert again.sampling["digests"] == whole.sampling["digests"]
    return 0

def usage():
    try:
        return main(["--epochs", "many"])
    except SystemExit as end:
        return end.code

ports = iter(sys.argv[1:])
for name, call in {
    "full": lambda: main(["--dataset", "npz:none", "--out", "none"]),
    "usage": usage,
    "second": lambda: run_ranks(fails_on_the_second, ""),
    "differs": lambda: run_ranks(differs, ""),
    "missing": lambda: main(["--loader", "random-nodes", "--dataset", "npz:none", "--out", "none"]),
    "no file": lambda: main(["--loader", "neighbor", "--dataset", "digits", "--resume", "--out", "taken"]),
    "refused": lambda: run_ranks(refused_on_the_second, ""),
    "refused alone": lambda: alone(refused_alone),
    "prints": lambda: run_ranks(prints, ""),
    "resumes": lambda: run_ranks(resumes, ""),
    "alone": lambda: run_ranks(fails_alone, ""),
}.items():
    os.environ["MASTER_PORT"] = next(ports)  # a job of its own: nobody shall meet the one before
    sys.stderr.flush(), print(f"@{name} ends", call(), flush=True), print("@", file=sys.stderr, flush=True)
"""


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **more}


@pytest.fixture(scope="module")
def outputs(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """What each of two processes wrote on standard output and standard error."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(11)]
        for probe in probes:
            probe.bind(("localhost", 0))
        ports = [str(probe.getsockname()[1]) for probe in probes]
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "taken" / "records.jsonl").mkdir(parents=True)  # where a file should be
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCENARIOS, *ports],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="localhost",
                PYTHONPATH=str(pytestconfig.rootpath),
            ),
        )
        for rank in range(2)
    ]
    try:
        return [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("full", 2, "'loader' must divide the graph among 2 processes (got 'full'"),
        ("usage", 2, "argument --epochs: invalid int value"),
        ("second", 2, "error: the disk is full (process 1 of 2)"),
        ("differs", 2, "'dataset' must be the same in every process (got fingerprint 0, fingerprint 1)"),
        ("missing", 2, "none' is not a file"),
        ("no file", 2, "error: [Errno 21] Is a directory: 'taken/records.jsonl'. Free space there, give permission"),
        ("refused", 2, "error: [Errno 21] Is a directory: 'taken'. Free space there"),
    ],
)
def test_an_error_ends_all_with_one_message(outputs: list[tuple[str, str]], name: str, code: int, message: str):
    assert all(f"@{name} ends {code}\n" in out for out, _ in outputs), outputs
    place = [line for line in outputs[0][0].splitlines() if line.startswith("@")].index(f"@{name} ends {code}")
    assert message in outputs[0][1].split("@")[place]
    assert message not in outputs[1][1]


def test_the_first_alone_prints(outputs: list[tuple[str, str]]):
    assert "printed" in outputs[0][0] and "warned" in outputs[0][1]
    assert "printed" not in outputs[1][0] and "warned" not in outputs[1][1]


def test_a_job_goes_on_bit_for_bit_from_the_file_of_its_first_process(outputs: list[tuple[str, str]]):
    assert all("@resumes ends 0\n" in out for out, _ in outputs), outputs


def test_an_error_that_the_others_do_not_know_of_is_said_where_it_is(outputs: list[tuple[str, str]]):
    assert "@alone ends 130" in outputs[0][0] and "@alone ends 2" in outputs[1][0]
    assert "error: nobody else knows (process 1 of 2)" in outputs[1][1] and "nobody" not in outputs[0][1]
    assert "@refused alone ends 130" in outputs[0][0] and "@refused alone ends 2" in outputs[1][0]
    assert "or name another place. (process 1 of 2)" in outputs[1][1] and "Traceback" not in outputs[1][1]


def write_graph(path: Path) -> None:
    """300 nodes of 3 classes in the layout of the public npz files."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    adjacency = rng.random((300, 300)) < np.where(labels[:, None] == labels, 0.03, 0.003)
    features = np.eye(3)[labels] + rng.normal(size=(300, 3))
    indices = [row.nonzero()[0] for row in adjacency | adjacency.T]
    np.savez(
        path,
        adj_data=np.ones(sum(map(len, indices))),
        adj_indices=np.concatenate(indices),
        adj_indptr=np.cumsum([0, *map(len, indices)]),
        adj_shape=(300, 300),
        attr_matrix=features,
        labels=labels,
    )


def test_torchrun_trains_one_model(tmp_path: Path, pytestconfig: pytest.Config):
    write_graph(tmp_path / "graph.npz")
    root = pytestconfig.rootpath
    script = str(root / "benchmarks" / "ogbn_arxiv.py")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script,
        "--dataset", f"npz:{tmp_path / 'graph.npz'}", "--loader", "neighbor", "--fan-out", "4", "--batch-size", "8",
        "--method", "baseline", "rmm-lean", "checkpoint", "--layers", "2", "--hidden", "16", "--epochs", "2",
        "--runs", "1", "--device", "cpu", "--bn-momentum", "0.5", "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| baseline") == 1 and "2 processes" in done.stdout
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [record["config"]["method"] for record in records] == ["baseline", "rmm-lean", "checkpoint"]
    for record in records:
        assert record["config"]["world_size"] == 2 and record["config"]["fan_out"] == [4, 4]
        sampling = record["results"]["sampling"]
        assert sampling["steps_per_epoch"] == 2  # 30 training nodes, 16 at a time
        assert len(sampling["digests"]) == 2 and len(set(sampling["digests"])) == 1
        assert len(record["curves"]["loss"]) == len(record["curves"]["valid"]) == 2
    assert records[0]["curves"] == records[2]["curves"] != records[1]["curves"]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"table.md", "accuracy.png", "frontier.png"}


def test_a_single_process_needs_no_group(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    ranks = Ranks.of_environment()
    assert ranks == Ranks(0, 1, 0) and ranks.is_first
    assert ranks.agree(lambda: 3) == ranks.of_first(3) == ranks.same("n", 3) == 3 and ranks.total(1, 2) == [1, 2]
    model = torch.nn.Linear(2, 2)
    assert ranks.wrapped(model) is model and len(ranks.digests(model)) == 1
    assert run_ranks(lambda ranks: ranks.world_size, "") == 1


@pytest.mark.parametrize(("rank", "size"), [("2", "2"), ("x", "2"), ("-1", "2")])
def test_an_environment_that_makes_no_sense_is_refused(monkeypatch, capsys, rank: str, size: str):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(BenchmarkError, match=r"RANK and WORLD_SIZE must number the processes of a job.*torchrun"):
        Ranks.of_environment()
    assert run_ranks(lambda ranks: 0, "") == 2 and "RANK and WORLD_SIZE" in capsys.readouterr().err


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert Ranks(1, 2, 1).device(torch.device("cpu")) == torch.device("cpu")
    assert Ranks().device(torch.device("cuda:0")) == torch.device("cuda:0")
    with pytest.raises(BenchmarkError, match=r"'device' must not name one GPU for 2 processes.*Use --device cuda"):
        Ranks(1, 2, 1).device(torch.device("cuda:0"))
    with pytest.raises(BenchmarkError, match=r"There must be a GPU for every process.*got 1 for process 2.*device cpu"):
        Ranks(1, 2, 1).device(torch.device("cuda"))
