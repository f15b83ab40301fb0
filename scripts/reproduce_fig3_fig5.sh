#!/usr/bin/env bash
# The paper's Figures 3 and 5 (noise of a weight gradient during fine-tuning): a Markdown table and a picture beside its numbers.
# Arguments that it does not know go to benchmarks/glue.py. For example: bash scripts/reproduce_fig3_fig5.sh --data-dir DIR --model tiny
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks,transformers

python -m benchmarks.reports.fig3_fig5 "$@"
