"""The documentation builds without a warning, and its reference has every public name."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from sphinx.util.inventory import InventoryFile

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = (
    "rmm_gnn",
    "rmm_gnn.baselines.exact",
    "rmm_gnn.codecs",
    "rmm_gnn.context",
    "rmm_gnn.diagnostics",
    "rmm_gnn.functional",
    "rmm_gnn.hf",
    "rmm_gnn.nn",
    "rmm_gnn.planning",
    "rmm_gnn.sketches",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Where the pages are, and what Sphinx said."""
    out = tmp_path_factory.mktemp("html")
    # No network: whatever asks for a proxy that is not there fails, and its warning is an error.
    offline = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "--keep-going", "-q", "docs", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True, timeout=600, check=False
    )
    return out, done


@pytest.fixture(scope="module")
def documented(built):
    """Every name in the reference."""
    out, _ = built
    inventory = InventoryFile.load((out / "objects.inv").open("rb"), "", lambda base, path: path)
    return {name for kind, names in inventory.items() if kind.startswith("py:") for name in names}


def test_builds_without_warnings(built):
    _, done = built
    assert done.returncode == 0, done.stderr


def exporters(module, name):
    """The public modules that have this very object under this name."""
    wanted = getattr(import_module(module), name)
    return [other for other in map(import_module, PUBLIC) if name in other.__all__ and getattr(other, name) is wanted]


def test_authors_keep_their_initials(built):
    """reStructuredText would take "M. Charikar" at the start of a line for item M of a list."""
    out, _ = built
    text = (out / "api" / "sketches.html").read_text()
    assert "M. Charikar" in text and "P. Drineas" in text and '<ol class="upperalpha' not in text


@pytest.mark.parametrize("module", PUBLIC)
def test_reference_has_every_public_name(documented, module):
    names = import_module(module).__all__
    assert names
    # A name that two modules export is described under one of them.
    missing = [
        name for name in names if documented.isdisjoint(f"{other.__name__}.{name}" for other in exporters(module, name))
    ]
    assert not missing, f"add {missing} of {module} to a page in docs/api"


def test_no_public_package_is_left_out():
    found = {
        ".".join(("rmm_gnn", *path.parent.relative_to(ROOT / "rmm_gnn").parts))
        for path in (ROOT / "rmm_gnn").rglob("__init__.py")
        if "__all__" in path.read_text()
    }
    assert found == set(PUBLIC)


def test_tests_bring_what_the_documentation_needs():
    """The extra `dev` repeats the extra `docs`: one that named the other would name this package."""
    text = (ROOT / "pyproject.toml").read_text()
    needed, tests = (
        re.search(rf"^{extra} = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)[1] for extra in ("docs", "dev")
    )
    packages = re.findall(r'"([\w-]+>=[\d.]+)"', needed)
    assert len(packages) == 3 and all(f'"{package}"' in tests for package in packages)
