#!/usr/bin/env bash
# Builds the sdist and the wheels, looks into them, and tries an installed wheel from outside the checkout.
# Works in a temporary folder, on a copy of the files that git knows (or of an unpacked sdist); needs a package index.
# An optional argument keeps the built files: bash scripts/check_package.sh dist
set -euo pipefail
# shellcheck source=scripts/_environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/_environment.sh"
keep="${1:+$(mkdir -p -- "$1" && cd -- "$1" && pwd)}"

scratch="$(mktemp -d)"
trap 'rm -rf -- "$scratch"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset VIRTUAL_ENV CONDA_PREFIX PYTHONPATH

say "Copying the files"
cd -- "$REPO_ROOT"
mkdir "$scratch/tree"
if [[ -e .git ]]; then
    git ls-files -z --cached --others --exclude-standard | tar -c --null -T - | tar -x -C "$scratch/tree"
else
    tar -c --exclude='*.so' --exclude=__pycache__ --exclude='.[!g]*' . | tar -x -C "$scratch/tree"
fi

say "Building"
use_venv "$scratch/tools"
python -m pip install --quiet build twine
cd -- "$scratch/tree"
python -m build --outdir "$scratch/dist" >"$scratch/build.log" 2>&1 || { cat "$scratch/build.log"; die "The build failed."; }
python -m build --wheel --outdir "$scratch/from-tree" >>"$scratch/build.log" 2>&1
CC=false python -m build --wheel --outdir "$scratch/pure" >>"$scratch/build.log" 2>&1
ls "$scratch/dist" "$scratch/pure"

say "Metadata"
python -m twine check --strict "$scratch"/dist/* "$scratch"/pure/*

say "Contents"
python - "$scratch" <<'PYTHON'
import pathlib, sys, zipfile

scratch = pathlib.Path(sys.argv[1])


def read(folder):
    (wheel,) = (scratch / folder).glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        return wheel.name, {name: file.read(name) for name in file.namelist()}


(from_sdist, files), (from_tree, others), (pure, plain) = map(read, ("dist", "from-tree", "pure"))
differing = sorted(name for name in files.keys() | others.keys() if files.get(name) != others.get(name))
assert from_sdist == from_tree and not differing, f"the wheel from the sdist is another than that from the tree: {differing}"
library = {name for name in files if name.endswith(".so")}
assert pure.endswith("-py3-none-any.whl") and not any(name.endswith(".so") for name in plain), pure
assert library == {"rmm_gnn/kernels/_native.so"}, f"no compiled library in {from_sdist}; is there a C compiler?"
assert files.keys() - library == plain.keys(), files.keys() ^ plain.keys()
assert not any("__pycache__" in name or name.split("/")[0] not in ("rmm_gnn", from_sdist.split("-py3")[0] + ".dist-info") for name in files)
print(f"{from_sdist}: {len(files)} files, the same from the sdist and from the tree; {pure}: without the library")
PYTHON
deactivate

say "Installing the wheel outside the checkout"
use_venv "$scratch/user"
if ! nvidia-smi -L >/dev/null 2>&1; then
    python -m pip install --quiet "torch==$TORCH_VERSION"
fi
wheel="$(ls "$scratch"/dist/*.whl)"
echo "torch==$(torch_version)" | sed '/==$/d' >"$scratch/held.txt"
python -m pip install --quiet --constraint "$scratch/held.txt" "$wheel" pytest
mkdir "$scratch/empty"
cd -- "$scratch/empty"
# Importing says that the core needs no extra; these tests, that all public names are there without one.
python -c 'import rmm_gnn.hf, sys; assert "site-packages" in rmm_gnn.__file__, rmm_gnn.__file__; print(rmm_gnn.__file__)'
python -c 'from rmm_gnn.kernels import native; assert native.is_built(), "the compiled kernels do not load"'
cp -r "$scratch/tree/tests/public_api" "$scratch/tree/README.md" .
printf '[pytest]\nmarkers = slow\naddopts = --import-mode=importlib\n' >pytest.ini
python -m pytest -q -m "not slow" public_api

say "The same with the extras, the README's examples, and mypy from outside"
python -m pip install --quiet --constraint "$scratch/held.txt" "$wheel[benchmarks,transformers,dev]"
mkdir tests
cp "$scratch/tree/tests/test_readme.py" tests/
python -m pytest -q -m "" public_api "tests/test_readme.py::test_python_blocks_run"

say "The tests that come with the sdist"
mkdir "$scratch/sdist"
tar -xzf "$scratch"/dist/*.tar.gz -C "$scratch/sdist" --strip-components 1
cd -- "$scratch/sdist"
# All are collected; those of what has to come with them run.
python -m pytest -q --collect-only >"$scratch/collected.txt" || { tail -n 40 "$scratch/collected.txt"; die "Not collected."; }
tail -n 1 "$scratch/collected.txt"
python -m pytest -q tests/test_distribution.py tests/test_constraints.py tests/test_imports.py tests/public_api \
    tests/test_readme.py --deselect tests/test_readme.py::test_python_blocks_run

if [[ -n "$keep" ]]; then
    cp "$scratch"/dist/* "$scratch"/pure/* "$keep/"
    say "Kept in $keep"
fi
say "The package is whole."
