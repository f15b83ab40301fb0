"""The JSON file that the commands of benchmarks/micro write."""

import argparse
import json
from pathlib import Path

from benchmarks.micro import command


def test_a_row_is_a_line_with_spreads_in_place_of_seconds(tmp_path):
    given = argparse.Namespace(out=tmp_path / "deep" / "found.json", plot=Path("a.png"), rate=0.1, threads=None)
    seconds = [0.1 + number / 7 for number in range(100)]
    row = {
        "shape": "2x3",
        "layer": "a",
        "ratio": {"median": 1 / 3},
        "seconds": seconds,
        "bytes": 123456789,
        "kept": None,
    }
    command.write(given, {"device": "a CPU"}, [row, row], fits=[{"exponent": 2 / 3}])
    text = given.out.read_text()
    found = json.loads(text)
    assert found["settings"] == {"rate": 0.1, "threads": None} and found["environment"] == {"device": "a CPU"}
    assert len(found["date"]) == 10 and found["fits"] == [{"exponent": 0.666667}]
    short = {"low": 2.92857, "median": 7.17143, "high": 11.4143}
    assert found["rows"] == 2 * [row | {"ratio": {"median": 0.333333}, "seconds": short}]
    assert len([line for line in text.splitlines() if '"layer"' in line]) == 2 and len(text) < 700


def test_nothing_is_written_without_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command.write(argparse.Namespace(out=None), {}, [])
    assert not list(tmp_path.iterdir())


def test_lists_may_be_empty(tmp_path):
    given = argparse.Namespace(out=tmp_path / "found.json")
    command.write(given, {}, [])
    assert json.loads(given.out.read_text())["rows"] == []
