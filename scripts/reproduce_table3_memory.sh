#!/usr/bin/env bash
# The paper's Table 3, left (peak memory saved): a Markdown table and a picture beside its numbers.
# Arguments are passed on to it (--help shows them). For example: bash scripts/reproduce_table3_memory.sh --shrink 8 --threads 2
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks,transformers

python -m benchmarks.reports.table3_memory "$@"
