#!/usr/bin/env python3
"""All that only a GPU can show, in less than nine minutes: tests, kernels, layers, and the table of ogbn-arxiv.

bash scripts/gpu_check.sh OUT_DIR --root DIR     # DIR holds ogbn_arxiv; without it, embedded data
bash scripts/gpu_check.sh OUT_DIR --smoke        # the parts on the CPU, at tiny size: shows nothing of a GPU
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.files import write_text
from benchmarks.harness.parts import Outcome, Part, run_parts, write_summary
from benchmarks.harness.script import guarded

ROOT = Path(__file__).resolve().parents[1]
# For all parts together; what starts and ends them takes seconds more.
LIMIT_S = 530.0
PACKAGES = (
    "torch",
    "torch_geometric",
    "pytest",
    "xdist",
    "hypothesis",
    "scipy",
    "sklearn",
    "ogb",
    "matplotlib",
    "tabulate",
    "tqdm",
)
SMOKE_TITLE = "CPU smoke: the parts run. Nothing here was measured on a GPU."
METHODS = (
    "baseline", "rmm", "rmm-lean:codec=int8,x0-codec=int4", "rmm-plan", "rmm-uniform", "exact:rate=0.125",
    "checkpoint", "offload",
)  # fmt: skip
KERNEL_TESTS = "kernel-tests"
GRAPH_TESTS = "tests/test_cuda_graphs.py"
NETWORKS = ((4, 64, 30.0), (16, 256, 60.0))


def check_machine(smoke: bool) -> None:
    """Refuse a machine that cannot run the parts.

    Raises:
        BenchmarkError: When packages are missing or there is no CUDA device.
    """
    wanted = PACKAGES if smoke else (*PACKAGES, "triton")
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise BenchmarkError(
            f"the packages of the checks must be installed (missing: {', '.join(missing)}). Nothing is installed here: "
            "run pip install -e '.[benchmarks,dev]' where there is a network."
        )
    import torch

    if not smoke and not torch.cuda.is_available():
        raise BenchmarkError(
            f"a CUDA device must be there (torch {torch.__version__} sees none). Run this on a machine with a GPU; "
            "--smoke runs the parts on the CPU."
        )


def parts_of(out: Path, root: Path, epochs: int, smoke: bool) -> tuple[list[Part], list[str]]:
    """The parts, and what a reader has to know of them.

    Args:
        out: Absolute folder of the results.
        root: Folder that holds ``ogbn_arxiv``.
        epochs: Of the table.
        smoke: Tiny, on the CPU.
    """
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    device = ["--device", "cpu" if smoke else "cuda"]
    # In ten processes: what takes long is to compile, on the CPU. On an H200's machine it was 130 s.
    kernel_tests = ["tests/kernels", "--ignore", "tests/kernels/test_ahead_of_time.py", "--fail-on-skip", "-n", "10"]
    cuda = [*pytest, "-m", "cuda", "--fail-on-skip"]
    one = ["tests/test_cuda.py"] if smoke else ["--ignore", GRAPH_TESTS]
    parts = [
        Part("cuda-tests", [*cuda, *one], 120, quoted=True),
        # In a process of their own: a capture that fails spoils what comes after it.
        Part("graph-tests", [*cuda, GRAPH_TESTS], 45, quoted=True),
        Part(
            KERNEL_TESTS,
            [*pytest, *(["tests/kernels/test_reference.py"] if smoke else kernel_tests)],
            140,
            quoted=True,
        ),
    ]
    for script, budget_s, tiny in (
        ("linear", 35, ["--rate", "0.5", "--shape", "64x8x4"]),
        ("kernels", 20, ["--shape", "64x8"]),
    ):
        for backend in ("torch",) if smoke else ("torch", "triton"):
            name = f"{script}-{backend}"
            tested = ["--no-gate"] if smoke else ["--tested-in", f"{KERNEL_TESTS} of this check"]
            own = ["--backend", backend, *device, *tested, "--out", str(out / f"{name}.json")]
            small = [*tiny, "--repetitions", "1"] if smoke else []
            command = [sys.executable, f"benchmarks/micro/{script}.py", *own, *small]
            # No time is shown of kernels that are not right.
            parts.append(Part(name, command, budget_s, files=[f"{name}.json"], needs=[KERNEL_TESTS]))
    with_arxiv = not smoke and any((root / name).is_dir() for name in ("ogbn_arxiv", "ogbn_arxiv_pyg"))
    data = ["--root", str(root)] if with_arxiv else ["--dataset", "digits", "--budget", "60%"]
    for layers, hidden, budget_s in ((2, 16, 90.0),) if smoke else NETWORKS:
        name = f"arxiv-{layers}x{hidden}"
        sizes = ["--layers", str(layers), "--hidden", str(hidden), "--epochs", str(epochs), "--eval-every", str(epochs)]
        table = [*data, *device, *sizes, "--runs", "1", "--ledger", "--method", *METHODS, "--out", str(out / name)]
        command = [sys.executable, "benchmarks/ogbn_arxiv.py", *table]
        parts.append(Part(name, command, budget_s, files=[f"{name}/"]))
    notes = [
        f"Layers and kernels are timed where {KERNEL_TESTS} passed; run alone, by --part, without it as well.",
        f"The tables of ogbn-arxiv are of {epochs} epochs: look at their bytes and times, not at their accuracies. "
        "One that was cut off goes on by its command with --resume.",
    ]
    if not with_arxiv:
        notes.append(
            f"No ogbn_arxiv in '{root}': the parts arxiv-* are of the embedded digits, a graph of 1,797 nodes."
        )
    # Budgets are for a GPU's machine, which has nothing else to do.
    return [replace(part, budget_s=LIMIT_S) for part in parts] if smoke else parts, notes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts and write the summary.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, 1 where a part did not pass, 2 for something the user can put right, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check.sh", description=str(__doc__).split("\n\n")[0], allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "out", nargs="?", type=Path, help="new folder for the results (unset: runs/gpu-check/DEVICE-DATE)"
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder that holds ogbn_arxiv")
    parser.add_argument("--epochs", type=int, default=5, help="training steps of the tables of ogbn-arxiv")
    parser.add_argument("--part", nargs="+", help="run these alone, by their names in the summary")
    parser.add_argument("--smoke", action="store_true", help="the parts on the CPU, at tiny size")
    return guarded(lambda: _run(parser.parse_args(argv)), "Interrupted; summary.md tells of the parts that ended.")


def _run(given: argparse.Namespace) -> int:
    check_machine(given.smoke)
    if given.epochs < 1:
        raise BenchmarkError(f"'epochs' must be at least 1 (got {given.epochs}). Five show the bytes and the times.")
    import torch

    from benchmarks.harness import environment

    where = environment.describe(torch.device("cpu" if given.smoke else "cuda"))
    name = re.sub(r"[^a-z0-9]+", "-", where["device"].lower()).strip("-")
    name = "cpu-smoke" if given.smoke else name
    out = (given.out or ROOT / "runs/gpu-check" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    if out.exists() and not out.is_dir():
        raise BenchmarkError(f"'out' must be a folder (got the file '{out}'). Name another one.")
    if out.exists() and any(out.iterdir()):
        raise BenchmarkError(f"'out' must be a new folder (got '{out}', which holds files). Name another one.")
    parts, notes = parts_of(out, given.root.expanduser().absolute(), given.epochs, given.smoke)
    parts = _chosen(parts, given.part)
    write_text(out / "environment.json", json.dumps(where, indent=1) + "\n")
    packages = where["packages"]
    version = f"{where['device']}, CUDA {where['cuda']}, torch {packages['torch']}, triton {packages['triton']}"
    commit = (where["git_sha"] or "unknown")[:12] + (" with uncommitted changes" if where["git_dirty"] else "")
    notes = [f"{version}, commit {commit}.", *notes]
    title = SMOKE_TITLE if given.smoke else f"GPU check: {where['device']}"

    def report(outcomes: Sequence[Outcome]) -> None:
        write_summary(out, title, notes, outcomes)
        last = outcomes[-1]
        print(f"==> {last.part.name}: {last.result} ({last.seconds:.1f} s) {last.quote}".rstrip(), flush=True)

    # Kernels shall run, not be interpreted.
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    outcomes = run_parts(parts, out, cwd=ROOT, environment=variables, limit_s=LIMIT_S, report=report)
    print(f"\n{write_summary(out, title, notes, outcomes)}\nResults are in {out}")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _chosen(parts: list[Part], names: Sequence[str] | None) -> list[Part]:
    known = [part.name for part in parts]
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise BenchmarkError(f"'part' must be one of {', '.join(known)} (got '{unknown[0]}'). Choose from these.")
    return [part for part in parts if names is None or part.name in names]


if __name__ == "__main__":
    sys.exit(main())
