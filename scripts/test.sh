#!/usr/bin/env bash
# Runs the checks, the tests, and every script with --smoke (scripts/smoke.sh).
# With arguments it runs pytest alone, with them: bash scripts/test.sh -k count_sketch
# A test that is skipped counts as a failure, except for a missing GPU, torch-scatter or C compiler.
# A path among the arguments must lie in tests/, where --fail-on-skip is defined.
# Without arguments the tests run in several processes, unless there is a GPU, which they would share.
# With --constraints FILE first the tests, without the checks, in an environment with the releases that FILE names:
#   bash scripts/test.sh --constraints constraints/oldest.txt
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

constraints=""
if [[ "${1:-}" == --constraints ]]; then
    [[ -r "${2:-}" ]] || die "'--constraints' must be followed by a file (got '${2:-}'). Try constraints/oldest.txt."
    constraints="$2"
    shift 2
    # A folder for each content: pip would leave a newer release where an older one is asked for.
    unset VIRTUAL_ENV CONDA_PREFIX
    use_venv "$REPO_ROOT/.venv-$(basename -- "$constraints" .txt)-$(cksum <"$constraints" | cut -d ' ' -f 1)"
fi

# Every extra but scatter, which has to be compiled (scripts/install_scatter.sh).
prepare_environment benchmarks,transformers,triton,dev "$constraints"

checks=0 smoke=0 all=0
if (($# == 0)); then
    all=1
    [[ -n "$constraints" ]] || bash scripts/check.sh || checks=$?
    nvidia-smi -L >/dev/null 2>&1 || set -- -n logical --maxprocesses 4 --dist worksteal
fi

tests=0
python -m pytest --fail-on-skip "$@" || tests=$?

((all == 0)) || bash scripts/smoke.sh || smoke=$?

((checks == 0)) || echo "error: scripts/check.sh failed; its findings stand above the tests." >&2
((tests == 0)) || echo "error: tests failed; see above scripts/smoke.sh." >&2
exit "$((tests != 0 ? tests : checks != 0 ? checks : smoke))"
