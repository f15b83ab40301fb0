"""Every kernel becomes machine code of the GPUs it is meant for, with the sizes it is launched with there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
SLOW = pytest.mark.slow
# fmt: off
CASES = [
    pytest.param("90", "float32", id="sm_90-float32"),
    *(pytest.param(capability, dtype, id=f"sm_{capability}-{dtype}", marks=SLOW)
      for capability in ("80", "90") for dtype in ("float32", "bfloat16", "float16", "float64")),
]
# fmt: on


@pytest.mark.parametrize(("capability", "dtype"), CASES)
def test_kernels_compile(capability, dtype):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.ahead_of_time", capability, dtype]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    sizes = [int(line.split()[1]) for line in result.stdout.splitlines()]
    assert len(sizes) == 49 and min(sizes) > 1000
