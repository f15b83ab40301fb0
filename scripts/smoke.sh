#!/usr/bin/env bash
# Runs every script that has a --smoke, each to its end: tiny sizes, made-up data, no network. Shows how long each took.
# With names it runs these alone: bash scripts/smoke.sh reproduce_table5 demo
# With --list it names them, and runs nothing.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

names=("$@")
if (($# == 0)) || [[ "$1" == --list ]]; then
    names=(gpu_check demo)
    for path in scripts/reproduce_*.sh; do
        names+=("$(basename -- "$path" .sh)")
    done
fi
if [[ "${1:-}" == --list ]]; then
    printf '%s\n' "${names[@]}"
    exit
fi
for name in "${names[@]}"; do
    [[ -f "scripts/$name.sh" ]] || die "'$name' must be a script of the folder scripts. See bash scripts/smoke.sh --list."
done

prepare_environment benchmarks,transformers,dev

# One thread is enough for these sizes, and more would only wait for one another. No hub is asked.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
SMOKE_OUT="$(mktemp -d)"
trap 'rm -rf -- "$SMOKE_OUT"' EXIT
export SMOKE_OUT

# Each argument in turn: reports that share their runs share a folder, and the second finds what the first has trained.
run_in_turn() {
    local name start folder status=0 log
    for name in "$@"; do
        start="$SECONDS" log="$SMOKE_OUT/$name.log"
        case "$name" in
            reproduce_table2 | reproduce_table4) folder=glue ;;
            reproduce_table5 | reproduce_fig7) folder=arxiv ;;
            *) folder="$name" ;;
        esac
        local arguments=(--smoke --out "$SMOKE_OUT/$folder")
        [[ "$name" != gpu_check ]] || arguments=("$SMOKE_OUT/$folder" --smoke)
        if bash "scripts/$name.sh" "${arguments[@]}" >"$log" 2>&1 </dev/null; then
            say "$name: passed in $((SECONDS - start)) s"
        else
            tail -n 40 "$log" >&2
            say "$name: FAILED after $((SECONDS - start)) s; its last lines stand above"
            status=1
        fi
    done
    return "$status"
}
export -f run_in_turn say

# A line for what has to run in turn; lines run side by side, as many as there are cores.
lines() {
    local name
    for name in "${names[@]}"; do
        case "$name" in
            reproduce_table2 | reproduce_table4) glue+=("$name") ;;
            reproduce_table5 | reproduce_fig7) arxiv+=("$name") ;;
            *) echo "$name" ;;
        esac
    done
    [[ -z "${glue[*]:-}" ]] || echo "${glue[*]}"
    [[ -z "${arxiv[*]:-}" ]] || echo "${arxiv[*]}"
}
glue=() arxiv=()
lines | xargs -P "$(python -c 'import os; print(min(4, os.cpu_count()))')" -L 1 bash -c 'run_in_turn "$@"' - \
    || die "Not every script passed."
