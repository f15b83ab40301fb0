#!/usr/bin/env bash
# Runs the checks and the tests. With arguments it runs pytest alone, with them: bash scripts/test.sh -k count_sketch
# A test that is skipped counts as a failure, except for a missing GPU, torch-scatter or C compiler.
# A path among the arguments must lie in tests/, where --fail-on-skip is defined.
# Without arguments the tests run in several processes, unless there is a GPU, which they would share.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

# Every extra but scatter, which has to be compiled (scripts/install_scatter.sh).
prepare_environment benchmarks,transformers,triton,dev

checks=0
if (($# == 0)); then
    bash scripts/check.sh || checks=$?
    nvidia-smi -L >/dev/null 2>&1 || set -- -n logical --maxprocesses 4 --dist worksteal
fi

tests=0
python -m pytest --fail-on-skip "$@" || tests=$?

((checks == 0)) || echo "error: scripts/check.sh failed; its findings stand above the tests." >&2
exit "$((tests != 0 ? tests : checks))"
