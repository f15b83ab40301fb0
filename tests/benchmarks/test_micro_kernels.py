"""The kernel benchmark on a small matrix, and the comparison of two runs."""

import importlib.util
import json
from pathlib import Path

import pytest

from benchmarks.micro import kernels

SMALL = ["--no-gate", "--repetitions", "2", "--device", "cpu"]
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "compare_bench.py"


@pytest.fixture(scope="module")
def compare_bench():
    spec = importlib.util.spec_from_file_location("compare_bench", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prints_a_row_per_kernel_and_writes_json(dtype, tmp_path, capsys):
    out = tmp_path / "deep" / "kernels.json"
    assert kernels.main(["--shape", "200x16", "--dtype", dtype, *SMALL, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"200 x 16, {dtype}" in text and "UNVERIFIED" in text
    rows = {row["layer"]: row for row in json.loads(out.read_text())["rows"]}
    assert all(name in text for name in rows) and len(rows) == 18
    value = 4 if dtype == "float32" else 2
    assert rows["count_sketch 0.1"]["bytes"] == 200 * 16 * value + 20 * 16 * 4
    assert rows["encode int2"]["bytes"] == 200 * (16 * value + 4 + 4)
    assert rows["copy"]["ratio"]["median"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "triton"], "needs a GPU"),
        (["--backend", "native", "--dtype", "float16"], "takes torch.float16"),
        (["--backend", "cuda"], "'backend' must be a known name"),
        (["--shape", "3x4x5"], "'shape' must be ROWSxCOLUMNS"),
    ],
)
def test_what_can_be_put_right_exits_2(arguments, message, capsys):
    assert kernels.main([*SMALL, *arguments]) == 2
    assert message in capsys.readouterr().err


def write(path: Path, medians: dict[str, float], device: str = "a CPU", spread: float = 0.02) -> str:
    rows = [
        {"shape": "9x9", "layer": name, "ratio": {"low": value - spread, "median": value, "high": value + spread}}
        for name, value in medians.items()
    ]
    path.write_text(json.dumps({"environment": {"device": device, "threads": 2}, "rows": rows}))
    return str(path)


def test_a_ratio_that_got_worse_is_flagged(compare_bench, tmp_path, capsys):
    before = write(tmp_path / "before.json", {"same": 1.0, "slower": 1.0, "faster": 1.0, "gone": 1.0})
    after = write(tmp_path / "after.json", {"same": 1.09, "slower": 1.12, "faster": 0.5, "new": 1.0})
    assert compare_bench.main([before, after]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[2].strip() for line in lines if "SLOWER" in line] == ["slower"]
    assert lines[-1] == "3 rows compared, 1 slower by more than 10%, 1 gone."
    assert compare_bench.main([before, after, "--tolerance", "0.2"]) == 0


def test_what_lies_within_the_spread_is_said_and_not_flagged(compare_bench, tmp_path, capsys):
    before = write(tmp_path / "before.json", {"noisy": 1.0}, spread=0.3)
    after = write(tmp_path / "after.json", {"noisy": 1.2}, spread=0.3)
    assert compare_bench.main([before, after]) == 0
    assert "within the spread" in capsys.readouterr().out


def test_what_cannot_be_compared_exits_2(compare_bench, tmp_path, capsys):
    before = write(tmp_path / "before.json", {"row": 1.0})
    elsewhere = write(tmp_path / "elsewhere.json", {"row": 1.0}, device="another CPU")
    other = write(tmp_path / "other.json", {"another": 1.0})
    (tmp_path / "damaged.json").write_text("{}")
    for after, message in [
        (elsewhere, "differ in device"),
        (other, "no row in common"),
        (str(tmp_path / "damaged.json"), "could not be read"),
        (str(tmp_path / "missing.json"), "could not be read"),
    ]:
        assert compare_bench.main([before, after]) == 2
        assert message in capsys.readouterr().err
    assert compare_bench.main([before, elsewhere, "--anyway"]) == 0
