# shellcheck shell=bash
# Sourced by the other scripts; call `prepare_environment EXTRAS`, for example `prepare_environment benchmarks,dev`.
# Afterwards `python` is the environment's, and the package is installed in it in editable form.

# The release the project is developed on. Without this pin a resolver takes the newest torch.
TORCH_VERSION=2.13.0
REPO_ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

say() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Prints the first Python that is new enough.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.10 or newer was not found. Install it and run this script again."
}

# Makes a virtual environment at $1, unless a working one is there, and activates it.
use_venv() {
    local folder="$1" python
    if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then
        python="$(find_python)"
        say "Making a virtual environment in $folder ($("$python" --version))"
        "$python" -m venv --clear "$folder" \
            || die "python -m venv failed. On Debian and Ubuntu: sudo apt install python3-venv."
    fi
    # shellcheck disable=SC1091
    source "$folder/bin/activate"
}

# Keeps an environment that is active. Conda's base does not count: it belongs to everything else too.
activate_environment() {
    if [[ -n "${VIRTUAL_ENV:-}" ]]; then
        say "Using the active virtual environment $VIRTUAL_ENV"
    elif [[ -n "${CONDA_PREFIX:-}" && "${CONDA_DEFAULT_ENV:-}" != base ]]; then
        say "Using the active conda environment $CONDA_PREFIX"
    else
        use_venv "$REPO_ROOT/.venv"
    fi
    python -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
        || die "The active environment has $(python --version 2>&1), but 3.10 or newer is needed. Deactivate it."
}

# Prints the installed version of torch, or nothing.
torch_version() {
    python -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true
}

install_package() {
    local extras="$1" stamp="$2" constraints="$3" given="$4" version="$TORCH_VERSION"
    [[ -z "$given" ]] || version="$(sed -n 's/^torch==//p' "$given")"

    python -m pip install --quiet --upgrade pip || say "pip could not be upgraded; going on with the installed one"

    # First of all: any later resolution would pull the newest torch, a CUDA build of several GB. With a GPU that is
    # the right thing; a torch that is already there is left alone.
    if [[ -z "$(torch_version)" ]] && ! nvidia-smi -L >/dev/null 2>&1; then
        say "No NVIDIA GPU found: installing torch $version"
        python -m pip install "torch==$version"
    fi

    # Hold the installed torch, so that a conflict is an error and never an exchange of torch.
    : >"$constraints"
    [[ -z "$given" ]] || sed '/^torch==/d' "$given" >"$constraints"
    [[ -z "$(torch_version)" ]] || echo "torch==$(torch_version)" >>"$constraints"

    say "Installing rmm_gnn[$extras]"
    python -m pip install --quiet --constraint "$constraints" --editable "${REPO_ROOT}[$extras]"
    package_state "$extras" >"$stamp"
}

# What an installation depends on. Prints nothing when the package or its core dependencies are missing.
package_state() {
    python - "$REPO_ROOT" "$1" <<'PYTHON'
import hashlib, importlib.metadata, pathlib, sys

root, extras = sys.argv[1:]
try:
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("rmm_gnn", "torch", "torch-geometric")]
except importlib.metadata.PackageNotFoundError:
    sys.exit()
pyproject = hashlib.sha256(pathlib.Path(root, "pyproject.toml").read_bytes()).hexdigest()
print(root, extras, *versions, pyproject)
PYTHON
}

# Whether a stamp says that at least the given extras are installed and that nothing has changed since.
is_installed() {
    local extras="$1" prefix="$2" stamp recorded extra missing
    for stamp in "$prefix"/rmm_gnn-*.stamp; do
        [[ -s "$stamp" ]] || continue
        recorded="${stamp##*/rmm_gnn-}"
        recorded="${recorded%.stamp}"
        recorded="${recorded//-/,}"
        missing=""
        for extra in ${extras//,/ }; do
            [[ ",$recorded," == *",$extra,"* ]] || missing="$extra"
        done
        if [[ -z "$missing" && "$(<"$stamp")" == "$(package_state "$recorded")" ]]; then
            say "rmm_gnn[$recorded] is installed (delete $stamp to install again)"
            return 0
        fi
    done
    return 1
}

# With a second argument, a file of constraints for pip, these releases are installed; its line `torch==` is needed.
prepare_environment() {
    local extras="$1" given="${2:-}" prefix
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    activate_environment
    prefix="$(python -c 'import sys; print(sys.prefix)')"
    if ! is_installed "$extras" "$prefix"; then
        install_package "$extras" "$prefix/rmm_gnn-${extras//,/-}.stamp" "$prefix/rmm_gnn-constraints.txt" "$given"
    fi
}
