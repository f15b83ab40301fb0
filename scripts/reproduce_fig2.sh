#!/usr/bin/env bash
# The paper's Figure 2 (memory against batch size, throughput against rate): a Markdown table and a picture beside its numbers.
# Arguments are passed on to it (--help shows them). For example: bash scripts/reproduce_fig2.sh --batch-size 2 4 8 --throughput-batch-size 4
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks,transformers

python -m benchmarks.reports.fig2 "$@"
