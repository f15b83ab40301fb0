"""The second picture: which points are on the frontier, and that it is drawn for awkward inputs."""

from __future__ import annotations

import copy

import pytest
from matplotlib.axes import Axes

from benchmarks.harness.frontier import pareto_front, plot_frontier
from benchmarks.harness.methods import METHODS


def test_the_front_keeps_what_nothing_beats():
    points = [(4.0, 70.0), (1.0, 60.0), (2.0, 59.0), (3.0, 71.0), (1.0, 50.0), (5.0, 71.0)]
    assert pareto_front(points, larger_is_better=True) == [(1.0, 60.0), (3.0, 71.0)]
    assert pareto_front(points, larger_is_better=False) == [(1.0, 50.0)]


def test_one_point_is_its_own_front():
    assert pareto_front([(1.0, 2.0)], larger_is_better=True) == [(1.0, 2.0)]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """What the picture is asked to show."""
    seen: dict[str, list] = {"labels": [], "numbers": [], "steps": []}

    def spy(name: str, key: str, value) -> None:
        original = getattr(Axes, name)

        def call(self, *args, **kwargs):
            seen[key].append(value(*args, **kwargs))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Axes, name, call)

    spy("errorbar", "labels", lambda x, y, **style: style["label"])
    spy("annotate", "numbers", lambda text, *args, **kwargs: text)
    spy("step", "steps", lambda x, y, **style: list(zip(x, y, strict=True)))
    return seen


def test_rows_are_numbered_and_the_fronts_drawn(records, tmp_path, drawn):
    path = plot_frontier(records, tmp_path)
    assert path == tmp_path / "frontier.png" and path.read_bytes().startswith(b"\x89PNG")
    assert drawn["labels"] == ["1  baseline", "2  rmm count_sketch 0.1 fp32"]
    assert drawn["numbers"] == ["1", "1", "2", "2"]
    accuracy, seconds = drawn["steps"]
    # rmm keeps 4 MiB and the baseline 16; it is better, and as fast: the front is one point, drawn to the right end.
    assert accuracy == [(4.0, pytest.approx(71.33, abs=0.01)), (16.0, pytest.approx(71.33, abs=0.01))]
    assert seconds == [(4.0, 0.25), (16.0, 0.25)]


def test_every_method_in_one_place_and_single_runs(records, tmp_path):
    many = []
    for number, name in enumerate([*METHODS, "another"]):
        entry = copy.deepcopy(records[0])
        entry["config"]["method"], entry["settings"] = name, f"settings {number}"
        many.append(entry)
    many[-2]["results"]["saved_total_bytes"] = 0  # all of it elsewhere: nothing a logarithm could show
    assert plot_frontier(many, tmp_path).stat().st_size > 5000


def test_gib_for_large_runs(records, tmp_path, drawn):
    for entry in records:
        entry["results"]["saved_total_bytes"] *= 1024
    plot_frontier(records, tmp_path)
    assert [point[0] for point in drawn["steps"][0]] == [4.0, 16.0]
