#!/usr/bin/env bash
# The paper's Figure 8 (memory over an epoch): a Markdown table and a picture beside its numbers.
# Arguments that it does not know go to benchmarks/glue.py. For example: bash scripts/reproduce_fig8.sh --data-dir DIR --model tiny --task mrpc
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks,transformers

python -m benchmarks.reports.fig8 "$@"
