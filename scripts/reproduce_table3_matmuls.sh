#!/usr/bin/env bash
# The paper's Table 3, right (kinds of random matrices on CoLA): a Markdown table and a picture beside its numbers.
# Arguments that it does not know go to benchmarks/glue.py. For example: bash scripts/reproduce_table3_matmuls.sh --data-dir DIR --model tiny --runs 1
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks,transformers

python -m benchmarks.reports.table3_matmuls "$@"
