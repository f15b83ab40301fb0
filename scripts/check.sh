#!/usr/bin/env bash
# Lint, formatting and types. `ruff check --fix .` and `ruff format .` mend most of what it finds.
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

prepare_environment dev

status=0
say "ruff check"
python -m ruff check . || status=1
say "ruff format"
python -m ruff format --check --output-format concise . || status=1
say "mypy"
python -m mypy || status=1
exit "$status"
