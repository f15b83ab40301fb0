"""No time is shown of code that is not right: the tests that belong to a benchmark run before it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness.errors import BenchmarkError
from rmm_gnn.kernels import native

ROOT = Path(__file__).resolve().parents[2]
UNVERIFIED = "UNVERIFIED: the tests that belong to these numbers did not run."
_PASSED = ROOT / ".pytest_cache" / "benchmark_gate"


def check(tests: Sequence[str], skip: bool, passed_in: str | None = None) -> str | None:
    """Run the tests unless they passed on the very same sources before.

    Args:
        tests: Files or folders under the checkout's root.
        skip: Do not run them.
        passed_in: Do not run them either; names the larger run in which those of the kernels passed.

    Returns:
        None, or what to print above the numbers.

    Raises:
        BenchmarkError: When a test fails, or there are none.
    """
    if skip:
        return UNVERIFIED
    if passed_in is not None:
        return f"Of the tests, those passed before these numbers: {passed_in}."
    missing = [test for test in tests if not (ROOT / test).exists()]
    if missing:
        raise BenchmarkError(
            f"'{missing[0]}' is not there: tests come with a checkout, not with the package. Use --no-gate."
        )
    fingerprint = _fingerprint(tests)
    if _PASSED.exists() and fingerprint in _PASSED.read_text().split():
        return None
    print(f"Tests first: {' '.join(tests)}", file=sys.stderr)
    command = [sys.executable, "-m", "pytest", "-q", "-x", *tests]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode:
        tail = "\n".join([*result.stdout.splitlines()[-15:], *result.stderr.splitlines()[-3:]])
        raise BenchmarkError(
            f"{tail}\nThe tests of what is to be timed do not pass (above). Mend it, or use --no-gate."
        )
    _PASSED.parent.mkdir(exist_ok=True)
    with open(_PASSED, "a") as file:
        file.write(f"{fingerprint}\n")
    return None


def _fingerprint(tests: Sequence[str]) -> str:
    """Names the state of the package and of the tests, and what runs them."""
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    interpreted = os.environ.get("TRITON_INTERPRET")
    state = [sys.version, torch.__version__, native.is_built(), devices, interpreted]
    digest = hashlib.sha256(repr(state).encode())
    sources = [path for suffix in ("py", "c", "h") for path in (ROOT / "rmm_gnn").rglob(f"*.{suffix}")]
    for path in sorted([*sources, *(ROOT / "tests").rglob("*.py")]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    digest.update(" ".join(tests).encode())
    return digest.hexdigest()
