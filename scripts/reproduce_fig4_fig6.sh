#!/usr/bin/env bash
# The paper's Figures 4 and 6 (loss curves): a Markdown table and a picture beside its numbers.
# Arguments that it does not know go to benchmarks/glue.py. For example: bash scripts/reproduce_fig4_fig6.sh --data-dir DIR --model tiny --task sst2
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks,transformers

python -m benchmarks.reports.fig4_fig6 "$@"
