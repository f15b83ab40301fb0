#!/usr/bin/env bash
# The paper's Figure 7 (GCN2 on ogbn-arxiv: test accuracy against epoch): a Markdown table and a picture beside its numbers. The full size is one for a GPU.
# Arguments that it does not know go to benchmarks/ogbn_arxiv.py. For example: bash scripts/reproduce_fig7.sh --root DIR --layers 3 --hidden 64 --epochs 40
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks

python -m benchmarks.reports.fig7 "$@"
