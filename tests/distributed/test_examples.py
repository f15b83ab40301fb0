"""The example scripts of docs/distributed.md train, on two ranks that torchrun starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text()
COMMANDS = re.findall(r"^torchrun --nproc-per-node 2 (docs/examples/\w+\.py)$", PAGE, flags=re.MULTILINE)


def test_the_page_names_the_examples():
    assert sorted(COMMANDS) == ["docs/examples/ddp.py", "docs/examples/fsdp.py"]


@pytest.mark.slow
@pytest.mark.parametrize("script", COMMANDS)
def test_it_trains(script, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", ran.stdout)]
    assert len(losses) == 6 and losses[-1] < losses[0] / 4
    assert not list(tmp_path.iterdir())
