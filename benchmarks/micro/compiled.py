#!/usr/bin/env python3
"""What torch.compile makes of training: graphs, graph breaks, and what it compiles again after the first step.

    python benchmarks/micro/compiled.py                             # 50 steps of each subject, aot_eager
    python benchmarks/micro/compiled.py --backend inductor --steps 50

A step is a compiled forward pass, its backward pass, and a step of the optimizer outside of the graph; the tests of
what is compiled run first. Whole networks are given the graph as an edge list: torch.compile takes no sparse matrices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

# First on the path, so that the script runs from a checkout whether or not the package is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch_geometric.nn import GCN2Conv

from benchmarks.harness import environment
from benchmarks.harness.config import resolve
from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.harness.methods import METHODS
from benchmarks.harness.model import GCN2
from benchmarks.harness.script import guarded, parser_of
from benchmarks.harness.task import Task
from benchmarks.micro import gate
from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm
from rmm_gnn.nn import RMMLinear, RMMTorchLinear

TESTS = ("tests/test_compile.py", "tests/test_compile_lean.py")
BACKENDS = ("aot_eager", "inductor")
WIDTH, ROWS = 8, 300
CONFIG = RMMConfig(rate=0.25)


class Counts(NamedTuple):
    """What the compiler did.

    Attributes:
        graphs: Compiled in the first step.
        breaks: Places where a graph ended before the function did, in all steps.
        again: Functions, or parts of them, that were traced after the first step.
    """

    graphs: int
    breaks: int
    again: int


@dataclass(frozen=True)
class Subject:
    """What is trained.

    Attributes:
        model: Compiled.
        edges: Whether it reads a graph besides the features.
        context: Entered around the forward pass, outside of what is compiled.
    """

    model: nn.Module
    edges: bool = False
    context: Callable[[], AbstractContextManager[Any]] = nullcontext

    def inputs(self, rows: int) -> tuple[Tensor, ...]:
        """Features of so many rows, and a ring that joins them."""
        x, nodes = torch.randn(rows, WIDTH), torch.arange(rows)
        return (x, torch.stack([nodes, (nodes + 1) % rows])) if self.edges else (x,)


class Convolutions(nn.Module):
    """Two GCN2 convolutions that read one x_0, converted."""

    def __init__(self, config: RMMConfig) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            GCN2Conv(WIDTH, 0.3, theta=0.5, layer=layer, shared_weights=False, normalize=False) for layer in (1, 2)
        )
        convert_to_rmm(self, config)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x_0 = x
        for conv in self.convs:
            x = torch.tanh(conv(x, x_0, edges))
        return x


class Inside(nn.Module):
    """A model that enters ``compress_activations`` in its own forward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        with compress_activations(CONFIG):
            return self.model(*inputs)


def network() -> GCN2:
    """The benchmark's network, from stock layers."""
    return GCN2(WIDTH, WIDTH, 5, num_layers=3, dropout=0.2)


def lean_block() -> nn.Module:
    """Every lean module, as a converter makes them."""
    block = nn.Sequential(
        nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.LayerNorm(16), nn.GELU(),
        nn.RMSNorm(16), nn.SiLU(), nn.Linear(16, 16), nn.LeakyReLU(), nn.ELU(), nn.Linear(16, 5),
    )  # fmt: skip
    return convert_to_rmm(block, CONFIG, lean=True)


def by_method(name: str) -> Subject:
    """The benchmark's network as a method of ``benchmarks/ogbn_arxiv.py`` prepares and runs it."""
    run = resolve({"method": (name,), "rate": (CONFIG.rate,), "epochs": 1}).expand("", "cpu")[0]
    method, model, whole = METHODS[name], network(), Subject(nn.Identity(), edges=True)
    features, edges = whole.inputs(ROWS)
    task = Task((features, edges), torch.mean)
    model = method.prepare(model, run, task)  # type: ignore[assignment]
    return replace(whole, model=model, context=lambda: method.context(model, run, task))


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "RMMTorchLinear": lambda: Subject(nn.Sequential(*(RMMTorchLinear(WIDTH, WIDTH, config=CONFIG) for _ in range(3)))),
    "RMMLinear": lambda: Subject(nn.Sequential(*(RMMLinear(WIDTH, WIDTH, config=CONFIG) for _ in range(3)))),
    "RMMGCN2Conv": lambda: Subject(Convolutions(CONFIG), edges=True),
    "RMMGCN2Conv, anchored": lambda: Subject(
        Convolutions(replace(CONFIG, anchor=True, codec="int8", x0_codec="int4")), edges=True
    ),
    "lean modules": lambda: Subject(lean_block()),
    "GCN2, rmm": lambda: by_method("rmm"),
    "GCN2, rmm-lean": lambda: by_method("rmm-lean"),
    "GCN2, mode inside": lambda: Subject(Inside(network()), edges=True),
}


def count(subject: Subject, backend: str, rows: Sequence[int], *, evaluate: bool = False, **options: Any) -> Counts:
    """Train and count; what was compiled before is forgotten, and so are dynamo's counters.

    Args:
        subject: What to train.
        backend: Of ``torch.compile``.
        rows: Rows of every step's input.
        evaluate: Evaluate the model after every step.
        options: For ``torch.compile``.

    Returns:
        The counts.
    """
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(subject.model, backend=backend, **options)
    optimizer = torch.optim.SGD(subject.model.parameters(), lr=1e-3)
    inputs = {number: subject.inputs(number) for number in rows}
    first = Counts(0, 0, 0)
    for step, number in enumerate(rows):
        optimizer.zero_grad()
        with subject.context():
            out = compiled(*inputs[number])
        out.square().mean().backward()
        optimizer.step()
        if evaluate:
            subject.model.eval()
            with torch.no_grad():
                compiled(*inputs[number])
            subject.model.train()
        if step == 0:
            first = _read()
    last = _read()
    torch._dynamo.reset()
    return Counts(first.graphs, last.breaks, last.again - first.again)


def _read() -> Counts:
    # A frame counts whenever it is traced, be it for the first time, again for another input, or from a break on.
    return Counts(
        counters["stats"]["unique_graphs"], sum(counters["graph_break"].values()), counters["frames"]["total"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table.

    Args:
        argv: Arguments without the program's name; None reads ``sys.argv``.

    Returns:
        Exit code: 0, or 2 for something the user can put right.
    """
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=50, help="training steps")
    parser.add_argument("--backend", default="aot_eager", choices=BACKENDS, help="of torch.compile")
    parser.add_argument("--subject", nargs="+", default=list(SUBJECTS), choices=SUBJECTS, help="what is trained")
    parser.add_argument("--threads", type=int, help="CPU threads; unset: PyTorch's default")
    parser.add_argument(
        "--no-gate", action="store_true", help="do not run the tests first; the table is marked as unverified"
    )
    return guarded(lambda: _run(parser.parse_args(argv)), "interrupted")


def _run(given: argparse.Namespace) -> int:
    if given.steps < 2:
        raise BenchmarkError(f"'steps' must be at least 2 (got {given.steps}). The first one compiles.")
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    tabulate = require("tabulate").tabulate
    warning = gate.check(TESTS, given.no_gate)
    rows = []
    for name in given.subject:
        torch.manual_seed(0)
        rows.append([name, *count(SUBJECTS[name](), given.backend, [ROWS] * given.steps)])
    where = environment.describe(torch.device("cpu"))
    print(f"{given.steps} training steps, {given.backend}; {where['device']}, torch {where['packages']['torch']}\n")
    if warning:
        print(f"{warning}\n")
    print(tabulate(rows, ["subject", "graphs", "graph breaks", "compiled again"], tablefmt="github"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
