"""The adapter where transformers is not installed."""

from __future__ import annotations

import subprocess
import sys

_CODE = """
import sys
import torch

for absent in ("transformers", "peft", "accelerate"):
    sys.modules[absent] = None  # importing it raises ImportError

import rmm_gnn.hf
from rmm_gnn.hf import RMMArguments, apply_rmm, read_config, revert_rmm

model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
apply_rmm(model, '{"rate": 0.5}', ["0", "2"], whole_block=True)
model(torch.randn(20, 8)).sum().backward()
assert type(revert_rmm(model)[0]) is torch.nn.Linear
for name in ("RMMConv1D", "RMMTrainerCallback"):
    try:
        getattr(rmm_gnn.hf, name)
    except ImportError as error:
        assert name in str(error) and "pip install -e '.[transformers]'" in str(error), error
    else:
        raise AssertionError(name)
try:
    import rmm_gnn.hf.activations
except ImportError as error:
    assert "pip install -e '.[transformers]'" in str(error), error
else:
    raise AssertionError
try:
    rmm_gnn.hf.Missing
except AttributeError as error:
    assert "has no attribute 'Missing'" in str(error)
print("works")
"""


def test_models_of_other_origin_are_converted_and_the_rest_names_the_extra():
    result = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True)
    assert result.stdout.strip() == "works", result.stderr
