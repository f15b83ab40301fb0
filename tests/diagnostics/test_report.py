"""The report as table, JSON and figure, and every message of an error."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from rmm_gnn.diagnostics import MemoryReport, SavedEntry, memory_report
from rmm_gnn.diagnostics.table import format_bytes
from tests.diagnostics.models import C, Expression, features


def entry(module, operator, size, *, compressed=False, shared_with=()):
    return SavedEntry(module, operator, size, 1, (size // 4,), "float32", compressed, shared_with)


ENTRIES = (
    entry("convs.0.lin", "relu", 6 * 2**20, shared_with=("convs.1 linear", "a b", "c d")),
    entry("convs.1", "rmm_gnn.linear", 3 * 2**20, compressed=True),
    entry("convs.0", "relu", 512),
    entry("(loss)", "cross_entropy", 256),
)


@pytest.fixture
def report():
    return MemoryReport("cpu", True, ENTRIES, 100, 200, 300, 400, 300, None, 10 * 2**20, 2**30, None)


def test_sums(report):
    assert report.saved_bytes == 9 * 2**20 + 768
    assert report.by_operator() == {"relu": 6 * 2**20 + 512, "rmm_gnn.linear": 3 * 2**20, "cross_entropy": 256}
    assert list(report.by_module()) == ["convs.0.lin", "convs.1", "convs.0", "(loss)"]
    assert report.by_module(depth=1) == {"convs": 9 * 2**20 + 512, "(loss)": 256}
    assert report.by_module(depth=2) == {"convs.0": 6 * 2**20 + 512, "convs.1": 3 * 2**20, "(loss)": 256}
    assert report.untouched() == {"relu": 6 * 2**20 + 512, "cross_entropy": 256}


def test_table_of_entries(report):
    head, rule, first, second, rest, _, total = report.table(limit=2).splitlines()
    assert head.split() == ["module", "operator", "bytes", "%", "storages", "largest", "also", "kept", "by"]
    assert set(rule) == {"-"}
    assert first.split()[:6] == ["convs.0.lin", "relu", "6.0", "MiB", "66.7", "1"]
    assert first.endswith("convs.1 linear, a b, 1 more")
    assert second.split()[:6] == ["convs.1", "rmm_gnn.linear", "3.0", "MiB", "33.3", "1"]
    assert rest.split() == ["and", "2", "more", "768", "B", "0.0", "2"]
    assert total.split() == ["total", "9.0", "MiB", "100.0", "4"]
    assert len(report.table().splitlines()) == len(report.table(limit=None).splitlines()) == 4 + len(ENTRIES)


def test_tables_of_modules_and_operators(report):
    assert report.table("operator", limit=1).splitlines()[2:4] == [
        "relu        6.0 MiB   66.7",
        "and 2 more  3.0 MiB   33.3",
    ]
    assert report.table("module").splitlines()[-1].split() == ["total", "9.0", "MiB", "100.0"]


def test_printed_report_names_all_memories(report):
    text = str(report)
    for words in (
        "parameters and buffers 100 B, inputs 200 B",
        "none given",
        "10.0 MiB between forward and backward",
        "1.0 GiB in forward and backward",
        "compressed           3.0 MiB",
        "not compressed       relu 6.0 MiB, cross_entropy 256 B",
    ):
        assert words in text
    assert "allocator's" not in text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (2**20, "1.0 MiB"), (3 * 2**29, "1.5 GiB"), (2**42, "4096.0 GiB"),
     (None, "not measured")],
)  # fmt: skip
def test_sizes_read_well(size, text):
    assert format_bytes(size) == text


def test_json_round_trip(report):
    text = report.to_json(indent=1)
    assert json.loads(text) == json.loads(json.dumps(report.to_dict()))
    assert json.loads(text)["saved_bytes"] == report.saved_bytes
    assert json.loads(text)["entries"][0]["module"] == "convs.0.lin"
    assert MemoryReport.from_json(text) == report
    measured = memory_report(nn.Sequential(nn.Linear(C, C), nn.ReLU(), nn.Linear(C, C)), features())
    assert MemoryReport.from_json(measured.to_json()) == measured


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"saved_bytes": 1, "entries": []}', '{"saved_bytes": 1, "entries": [{}]}']
)
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match=r"'text' must be what to_json returned .got .* Write the report again"):
        MemoryReport.from_json(text)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_writes_a_figure(report, tmp_path, ending):
    path = tmp_path / f"memory.{ending}"
    report.plot(path)
    assert path.stat().st_size > 5000
    if ending == "svg":
        text = path.read_text()
        assert all(name in text for name in ("convs.0.lin", "rmm_gnn.linear", "saved for backward"))


def test_plot_folds_what_is_small(tmp_path):
    many = tuple(entry(f"m{index}", f"op{index}", 4 * (100 - index)) for index in range(40))
    report = MemoryReport("cpu", True, many, 0, 0, 0, 0, 0, None, None, None, None)
    report.plot(tmp_path / "few.svg", limit=5)
    text = (tmp_path / "few.svg").read_text()
    assert "others" in text and "m4 " in text and "m5 " not in text
    assert "op8 " in text and "op9 " not in text


def test_plot_of_nothing(tmp_path):
    MemoryReport("cpu", True, (), 0, 0, 0, 0, 0, None, None, None, None).plot(tmp_path / "empty.png")
    assert (tmp_path / "empty.png").stat().st_size > 1000


def test_plot_without_matplotlib(report, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install matplotlib, or pip install -e '\.\[benchmarks\]'"):
        report.plot(tmp_path / "none.png")


def test_arguments_of_the_report(report, tmp_path):
    with pytest.raises(
        ValueError, match=r"'by' must be a known name .got 'layer'.. Choose one of entry, module, operator"
    ):
        report.table("layer")
    with pytest.raises(ValueError, match=r"'limit' must be at least 1"):
        report.table(limit=0)
    with pytest.raises(TypeError, match=r"'limit' must be a whole number"):
        report.plot(tmp_path / "none.png", limit=None)
    with pytest.raises(ValueError, match=r"'depth' must be at least 1"):
        report.by_module(depth=0)


X = torch.ones(3, C)


@pytest.mark.parametrize(
    ("model", "inputs", "options", "error", "message"),
    [
        (lambda x: x, (X,), {}, TypeError, "'model' must be a torch.nn.Module .got function.. Wrap the function"),
        (nn.Linear(C, 1), (X,), {"loss_fn": 3}, TypeError, "'loss_fn' must be callable .got int.. Give a function"),
        (nn.Linear(C, 1), (X,), {"loss_fn": lambda out: 3.0}, TypeError, "'loss_fn' must return a tensor .got float"),
        (nn.Linear(C, 2), (X,), {"loss_fn": lambda out: out}, ValueError, r"must return a scalar .got shape \(3, 2\)"),
        (nn.Linear(C, 1), (X,), {"optimizer": "adam"}, TypeError, "'optimizer' must be a torch.optim.Opt.* .got str"),
        (nn.LazyLinear(2), (X,), {}, ValueError, "'model' must be initialised .got 'weight' without a shape.. Run"),
        (nn.Linear(C, 1, device="meta"), (X,), {}, ValueError, "'model' must be on a real device .got meta.. Call"),
        (nn.Linear(C, 1), ([X.clone().requires_grad_() * 2],), {}, ValueError,
         "'inputs' must hold no tensors with a graph behind them .got MulBackward0.. Pass x.detach"),
    ],
)  # fmt: skip
def test_arguments_of_memory_report(model, inputs, options, error, message):
    with pytest.raises(error, match=message):
        memory_report(model, *inputs, **options)


def test_functions_may_be_methods():
    class Loss:
        def __init__(self, weight):
            self.weight = weight

        def __call__(self, out):
            return self.of(out)

        def of(self, out):
            return (out * self.weight).sum()

    loss = Loss(torch.rand(5, C))
    for loss_fn in (loss, loss.of):
        report = memory_report(Expression(lambda self, x: x * 1), torch.ones(5, C, requires_grad=True), loss_fn=loss_fn)
        assert report.saved_bytes == 0 and report.saved_input_bytes == 5 * C * 4
