#!/usr/bin/env bash
# On a machine with a GPU: runs what only a GPU can show, in less than nine minutes, and gathers the results in OUT_DIR.
# Nothing is downloaded or installed. For example: bash scripts/gpu_check.sh OUT_DIR --root DIR, DIR with ogbn_arxiv.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"

# The active environment, or the one that the other scripts made; prepare_environment would need a network.
python="$(find_python)"
if [[ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]]; then
    python="$(command -v python)"
elif [[ -x "$REPO_ROOT/.venv/bin/python" ]]; then
    python="$REPO_ROOT/.venv/bin/python"
fi

# No cd: OUT_DIR and --root are relative to where the script is called.
exec "$python" "$REPO_ROOT/benchmarks/gpu_check.py" "$@"
