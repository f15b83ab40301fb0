#!/usr/bin/env bash
# The paper's Table 5 (GCN2 on ogbn-arxiv: test accuracy): a Markdown table and a picture beside its numbers. The full size is one for a GPU.
# Arguments that it does not know go to benchmarks/ogbn_arxiv.py. For example: bash scripts/reproduce_table5.sh --root DIR --layers 3 --hidden 64 --epochs 40
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks

python -m benchmarks.reports.table5 "$@"
