#!/usr/bin/env bash
# Builds the documentation into docs/_build/html; warnings are errors. Arguments are passed on to Sphinx.
# Needs no network once the packages are installed. (Formulas on its pages are drawn by MathJax, which the browser loads.)
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
cd -- "$REPO_ROOT"

# Of transformers the reference describes a callback and a layer.
prepare_environment docs,transformers

python -m sphinx -W -n --keep-going "$@" docs docs/_build/html
say "Open docs/_build/html/index.html"
