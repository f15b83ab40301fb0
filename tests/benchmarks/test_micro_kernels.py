"""The kernel benchmark on a small matrix."""

import json

import pytest

from benchmarks.micro import kernels

SMALL = ["--no-gate", "--repetitions", "2", "--device", "cpu"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prints_a_row_per_kernel_and_writes_json(dtype, tmp_path, capsys):
    out = tmp_path / "deep" / "kernels.json"
    assert kernels.main(["--shape", "200x16", "--dtype", dtype, *SMALL, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"200 x 16, {dtype}" in text and "UNVERIFIED" in text
    rows = {row["layer"]: row for row in json.loads(out.read_text())["rows"]}
    assert all(name in text for name in rows) and len(rows) == 21
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
