"""The scaling benchmark on small layers, and the fit of exponents."""

import json

import numpy as np
import pytest

from benchmarks.harness.errors import BenchmarkError
from benchmarks.micro import gate, power_law, scaling, scaling_plot, ways
from rmm_gnn import RMMConfig

SIZES = ["--rows", "100", "400", "200", "800", "--width", "4", "8", "16", "--at-width", "8", "--at-rows", "60"]
SMALL = [*SIZES, "--repetitions", "2", "--device", "cpu"]


def test_a_power_law_without_noise_is_found():
    sizes = [10.0, 20.0, 50.0, 100.0]
    law = power_law.fit(sizes, [3 * size**1.7 for size in sizes])
    assert law.points == 4 and (law.start, law.stop) == (10, 100)
    assert [law.low, law.exponent, law.high] == pytest.approx([1.7, 1.7, 1.7])
    assert law.factor == pytest.approx(3) and law.at(30) == pytest.approx(3 * 30**1.7)
    assert law.format() == "1.70 (1.70 to 1.70)"


def test_the_interval_holds_the_exponent_as_often_as_it_says():
    """4000 draws, seed 0, bound of 5 standard errors; intervals 20 % too narrow are rejected at the same n."""
    generator = np.random.default_rng(0)
    sizes = np.array([1e3, 2e3, 5e3, 1e4, 2e4, 5e4])
    hits = {1.0: 0, 0.8: 0}
    for _ in range(4000):
        law = power_law.fit(sizes, sizes**1.3 * np.exp(generator.normal(scale=0.2, size=6)))
        for factor in hits:
            hits[factor] += abs(law.exponent - 1.3) < factor * (law.high - law.exponent)
    bound = 5 * (0.95 * 0.05 / 4000) ** 0.5
    assert abs(hits[1.0] / 4000 - 0.95) < bound
    assert abs(hits[0.8] / 4000 - 0.95) > bound


def test_small_sizes_are_left_out():
    sizes = [1, 2, 10, 20, 40, 80]
    values = [5, 5, 10, 20, 40, 80]
    assert power_law.fit(sizes, values, start=10).exponent == pytest.approx(1)
    assert power_law.fit(sizes, values, start=10).start == 10
    few = power_law.fit(sizes, values, start=40)  # two are no line with an interval
    assert few.points == power_law.LAST and few.start == 10
    assert power_law.fit(sizes[:2], values[:2]) is None


def test_prints_tables_and_writes_json_and_a_picture(tmp_path, capsys):
    out, picture = tmp_path / "deep" / "scaling.json", tmp_path / "pictures" / "scaling.png"
    assert scaling.main([*SMALL, "--no-gate", "--out", str(out), "--plot", str(picture)]) == 0
    text = capsys.readouterr().out
    layers = [ways.LINEAR, "count_sketch 0.1", "count_sketch 0.1, sketch alone", scaling.COPY]
    assert text.count("UNVERIFIED") == 1 and "rows at width 8" in text and "width at 60 rows" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    found = json.loads(out.read_text())
    assert [row["layer"] for row in found["rows"]] == 7 * layers
    assert [row["shape"] for row in found["rows"][::4]][:4] == ["100x8x8", "200x8x8", "400x8x8", "800x8x8"]
    assert found["rows"][0]["ratio"]["median"] == 1.0 and found["rows"][2]["saved_bytes"] is None
    assert "plot" not in found["settings"] and found["settings"]["at_rows"] == 60
    fits = [(fit["layer"], fit["of"], fit["in"]) for fit in found["fits"]]
    assert set(fits) == {(layer, "seconds", axis) for layer in layers for axis in ("rows", "width")} | {
        (layer, "saved_bytes", axis) for layer in layers[:2] for axis in ("rows", "width")
    }
    assert all(fit["low"] <= fit["exponent"] <= fit["high"] for fit in found["fits"])


def test_saved_bytes_are_linear_in_rows_and_in_width(tmp_path):
    out = tmp_path / "scaling.json"
    wide = ["--rows", "10000", "20000", "50000", "--width", "32", "64", "128", "--at-rows", "1000", "--at-width", "4"]
    assert scaling.main([*wide, "--no-gate", "--repetitions", "1", "--device", "cpu", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    for row in found["rows"]:
        rows, width, _ = map(int, row["shape"].split("x"))
        if row["layer"] == ways.LINEAR:
            assert row["saved_bytes"] == rows * width * 4
        elif row["layer"] == "count_sketch 0.1":
            assert row["saved_bytes"] == RMMConfig(rate=0.1, sketch="count_sketch").saved_bytes(rows, width)
    exponents = {(fit["layer"], fit["in"]): fit["exponent"] for fit in found["fits"] if fit["of"] == "saved_bytes"}
    assert exponents[ways.LINEAR, "rows"] == exponents[ways.LINEAR, "width"] == 1.0
    # Means and seed are there once, however many rows there are.
    assert exponents["count_sketch 0.1", "rows"] == pytest.approx(1, abs=1e-3)
    assert exponents["count_sketch 0.1", "width"] == pytest.approx(1, abs=1e-3)


def test_dense_sketches_are_measured_where_they_are_bounded(tmp_path, capsys):
    out = tmp_path / "scaling.json"
    dense = ["--sketch", "gaussian", "--max-entries", "2000", "--no-gate", "--out", str(out)]
    assert scaling.main([*SMALL, *dense]) == 0
    shapes = [row["shape"] for row in json.loads(out.read_text())["rows"] if row["layer"] == "gaussian 0.1"]
    assert shapes == ["100x8x8", "60x4x4", "60x8x8", "60x16x16"]  # 400 rows have 16000 entries, 200 have 4000
    (line,) = [line for line in capsys.readouterr().out.splitlines()[-12:] if line.startswith("| gaussian 0.1  ")]
    assert [cell.strip() for cell in line.split("|")][2] == "-"  # one size: no exponent in the rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "10", "20", "20"], "'rows' must be 3 or more different positive numbers (got 10 20 20)"),
        (["--width", "0", "4", "8"], "'width' must be 3 or more different positive numbers (got 0 4 8)"),
        (["--at-rows", "0"], "'at_rows' must be at least 1 (got 0)"),
        (["--at-width", "-3"], "'at_width' must be at least 1 (got -3)"),
        (["--rate", "1.5"], "'rate' must lie in (0, 1]"),
        (["--sketch", "gauss"], "count_sketch"),
        (["--sketch", "norm_sampling"], "'sketch' must be drawn from the seed and the number of rows"),
        (["--sketch", "kronecker"], "'sketch' must be drawn from the seed and the number of rows"),
        (["--backend", "cuda"], "'backend' must be a known name"),
        (["--repetitions", "0"], "'repetitions' must be at least 1"),
        (["--plot", "scaling.txt2"], "'plot' must end in .png, .pdf or .svg (got 'scaling.txt2')"),
        (["--device", "tpu"], "'device' must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_what_can_be_put_right_exits_2(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(
        gate, "check", lambda tests, skip, passed_in: pytest.fail("asked before the arguments were checked")
    )
    assert scaling.main([*SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_nothing_is_measured_where_a_test_fails(tmp_path, capsys, monkeypatch):
    asked = []

    def refuse(tests, skip, passed_in):
        asked.append((tests, skip))
        raise BenchmarkError("do not pass")

    monkeypatch.setattr(gate, "check", refuse)
    assert scaling.main([*SMALL, "--out", str(tmp_path / "scaling.json")]) == 2
    shown = capsys.readouterr()
    assert "do not pass" in shown.err and not shown.out and not list(tmp_path.iterdir())
    assert asked == [(scaling.TESTS, False)]
    assert all((gate.ROOT / test).exists() for test in scaling.TESTS)


def test_what_passed_its_tests_is_not_marked(capsys, monkeypatch):
    monkeypatch.setattr(gate, "check", lambda tests, skip, passed_in: None)
    assert scaling.main(SMALL) == 0
    assert "UNVERIFIED" not in capsys.readouterr().out


def test_curves_without_a_fit_are_drawn(tmp_path):
    value = scaling_plot.Curve("rows", "seconds", "a", [1, 2], [scaling.spread([1.0]), scaling.spread([2.0])], None)
    scaling_plot.draw([value], tmp_path / "two.png", "two points")
    assert (tmp_path / "two.png").stat().st_size > 1000
