"""Over many compiled training steps there is one graph, whole, and nothing is compiled after the first step."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from benchmarks.harness.propagation import normalized_adjacency
from benchmarks.micro.compiled import CONFIG, ROWS, SUBJECTS, WIDTH, Counts, Inside, Subject, count, lean_block, network
from rmm_gnn import RMMConfig
from rmm_gnn.nn import RMMTorchLinear
from rmm_gnn.sketches import FAMILIES
from tests.nn.recording import one_thread

STEPS = 50
ONE_GRAPH = Counts(graphs=1, breaks=0, again=0)
# What inductor compiles within seconds; the others wait for -m slow.
QUICK = ("RMMTorchLinear", "lean modules")
CASES = [
    *(pytest.param(name, "aot_eager", id=f"{name}-aot_eager") for name in SUBJECTS),
    *(
        pytest.param(name, "inductor", id=f"{name}-inductor", marks=() if name in QUICK else pytest.mark.slow)
        for name in SUBJECTS
    ),
]


@pytest.fixture(autouse=True)
def small_products() -> Iterator[None]:
    with one_thread():
        yield


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_one_graph_serves_all_steps(name, backend):
    assert count(SUBJECTS[name](), backend, [ROWS] * STEPS) == ONE_GRAPH


@pytest.mark.parametrize("family", FAMILIES)
def test_so_it_does_with_every_family(family):
    config = RMMConfig(rate=0.25, sketch=family, codec="int4")
    layers = (RMMTorchLinear(WIDTH, WIDTH, config=config) for _ in range(2))
    assert count(Subject(nn.Sequential(*layers)), "aot_eager", [ROWS] * STEPS) == ONE_GRAPH


CHANGES = [ROWS] * 20 + [137] * 20 + [64] * 10


@pytest.mark.parametrize("name", ["RMMTorchLinear", "lean modules", "GCN2, rmm"])
def test_the_number_of_rows_may_change_in_mid_run(name):
    found = count(SUBJECTS[name](), "aot_eager", CHANGES, dynamic=True)
    assert found.breaks == found.again == 0


class Marked(Subject):
    """Says of its inputs alone that their number may change."""

    def inputs(self, rows: int) -> tuple[Tensor, ...]:
        x, *edges = super().inputs(rows)
        torch._dynamo.mark_dynamic(x, 0)
        for edge in edges:
            torch._dynamo.mark_dynamic(edge, 1)
        return (x, *edges)


@pytest.mark.parametrize("build", [lambda: Marked(lean_block()), lambda: Marked(Inside(network()), edges=True)])
def test_or_only_that_of_the_inputs_that_are_marked(build):
    assert count(build(), "aot_eager", CHANGES) == ONE_GRAPH


@pytest.mark.parametrize("name", ["RMMGCN2Conv", "lean modules", "GCN2, rmm"])
def test_evaluation_between_the_steps_has_a_graph_of_its_own_and_no_more(name):
    assert count(SUBJECTS[name](), "aot_eager", [ROWS] * STEPS, evaluate=True) == ONE_GRAPH._replace(graphs=2)


def test_what_breaks_a_graph_is_counted():
    """torch.compile takes no sparse matrix: the network breaks there, whatever its layers keep."""

    class Sparse(Subject):
        def inputs(self, rows: int) -> tuple[Tensor, ...]:
            x, edges = super().inputs(rows)
            return x, normalized_adjacency(edges, rows)

    assert count(Sparse(network(), edges=True), "aot_eager", [ROWS] * 3).breaks > 0

    class Breaks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            return super().forward(x)

    assert count(Subject(Breaks(WIDTH, 2)), "aot_eager", [ROWS] * 3).breaks == 1


def test_what_is_compiled_again_is_counted():
    layer = Subject(RMMTorchLinear(WIDTH, WIDTH, config=CONFIG))
    found = count(layer, "aot_eager", [ROWS, ROWS, 137, 137, 64], dynamic=False)
    assert found == Counts(graphs=1, breaks=0, again=2)
