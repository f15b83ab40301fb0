#!/usr/bin/env bash
# Builds torch-scatter against the installed torch and runs its parity test.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment dev

if python -c 'import torch_scatter' 2>/dev/null; then
    say "torch-scatter is installed and loads"
else
    say "Building torch-scatter. It needs a C++ compiler and takes about 17 minutes on 2 cores."
    python -m pip install --quiet setuptools wheel
    # Its setup.py imports torch, so no build isolation; a wheel cached for another torch would not load, so no cache.
    python -m pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "torch-scatter>=2.1.2"
fi

say "Comparing it with the reference"
python -m pytest --fail-on-skip tests/kernels/test_scatter.py
