#!/usr/bin/env bash
# Trains the exact baseline and RMM side by side on embedded data and draws the curves. No data is downloaded.
# Arguments are passed on to benchmarks/ogbn_arxiv.py: bash scripts/demo.sh --epochs 200, or --smoke for tiny sizes.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment benchmarks

# A folder per call, so that a second call neither mixes with the first nor asks anything.
out="runs/demo/$(date +%Y%m%d-%H%M%S)"
sizes=(--layers 4 --hidden 64 --epochs 60 --runs 3)
previous=""
for argument in "$@"; do
    [[ "$previous" != --out ]] || out="$argument"
    [[ "$argument" != --out=* ]] || out="${argument#--out=}"
    [[ "$argument" != --smoke ]] || sizes=()
    previous="$argument"
done

python benchmarks/ogbn_arxiv.py --dataset digits --method baseline rmm rmm-lean exact:rate=0.125 --rate 0.1 --codec int8 --x0-codec int4 \
    ${sizes[@]+"${sizes[@]}"} --out "$out" "$@"

say "Picture, table and records are in $out:"
find "$out" -maxdepth 1 -type f | sort | sed 's/^/    /'
