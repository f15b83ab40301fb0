"""What mypy sees of the package from outside: right uses pass, and wrong ones are found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rmm_gnn

RIGHT = """
import torch

from rmm_gnn import RMMConfig, compress_activations, convert_to_rmm, memory_report, plan, rmm_linear
from rmm_gnn.nn import RMMTorchLinear

config = RMMConfig(rate=0.1, codec="int8")
layer: torch.nn.Linear = RMMTorchLinear(4, 4, config=config)
model: torch.nn.Sequential = convert_to_rmm(torch.nn.Sequential(layer), {".*": config})
with compress_activations(config):
    out: torch.Tensor = rmm_linear(torch.randn(8, 4), torch.randn(4, 4), config=config)
saved: int = config.saved_bytes(10, 4) + memory_report(model, torch.randn(8, 4)).saved_bytes
json: str = plan(model, torch.randn(8, 4), lambda out: out.sum(), budget="10%").to_json()
"""
# Each line with the code of the one error it has to give; a package without types would give none.
WRONG = """
import torch

from rmm_gnn import RMMConfig, convert_to_rmm, rmm_linear

RMMConfig(rate="a tenth")  # arg-type
RMMConfig(rats=0.1)  # call-arg
size: str = RMMConfig(rate=0.1).saved_bytes(10, 4)  # assignment
rmm_linear(torch.randn(8, 4), torch.randn(4, 4))  # call-arg
model: torch.nn.Linear = convert_to_rmm(torch.nn.Sequential(), RMMConfig(rate=0.1))  # assignment
RMMConfig(rate=0.1).no_such_method()  # attr-defined
"""


@pytest.mark.slow
def test_right_uses_pass_and_wrong_ones_do_not(tmp_path):
    pytest.importorskip("mypy")
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    site = Path(rmm_gnn.__file__).parents[1]
    variables = dict(os.environ)
    if site.name != "site-packages":  # a checkout; what it imports without types is not the user's business either
        variables["MYPYPATH"] = str(site)
    command = [
        sys.executable, "-m", "mypy", "--config-file=", "--cache-dir", str(tmp_path / "cache"),
        "--follow-imports=silent", "right.py", "wrong.py",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    found = re.findall(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, flags=re.MULTILINE)
    expected = [
        ("wrong", str(number), line.partition("# ")[2])
        for number, line in enumerate(WRONG.splitlines(), start=1)
        if "# " in line
    ]
    assert found == expected, done.stdout + done.stderr
