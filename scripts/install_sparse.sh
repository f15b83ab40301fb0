#!/usr/bin/env bash
# Builds torch-scatter and torch-sparse, which needs it, against the installed torch, and runs the tests that use them.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks,dev

# Builds one package unless it loads: install MODULE REQUIREMENT
install() {
    if python -c "import $1" 2>/dev/null; then
        say "$2 is installed and loads"
        return
    fi
    say "Building $2. It needs a C++ compiler and takes 10 to 20 minutes on 2 cores."
    python -m pip install --quiet setuptools wheel
    # Its setup.py imports torch, so no build isolation; a wheel cached for another torch would not load, so no cache.
    python -m pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps "$2"
}

install torch_scatter "torch-scatter>=2.1.2"
install torch_sparse "torch-sparse>=0.6.18"

say "Running the tests that use them"
python -m pytest --fail-on-skip tests/kernels/test_scatter.py
python -m pytest tests/benchmarks/test_loaders.py tests/benchmarks/test_sampled_training.py -k saint
