"""Nothing runs code that a file brings, and nothing is handed to a shell: read from the syntax of every module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path for folder in ("rmm_gnn", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")
) + [ROOT / "hatch_build.py"]  # fmt: skip
# The one reader of pickles, which knows a few names and no others: tests/benchmarks/test_hostile_files.py tries it.
READS_PICKLES = ROOT / "benchmarks/harness/datasets/safe_pickle.py"

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "tarfile"}
NAMES = {"eval", "exec", "compile", "__import__"}
# Ends of dotted names, whatever the module is called where it is used.
CALLS = {
    "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "os.system", "os.popen", "pd.read_pickle",
    "pandas.read_pickle", "shutil.unpack_archive", "np.lib.format.open_memmap", "extractall", "extract",
    "load_from_checkpoint",
}  # fmt: skip


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and description of everything in a module that this file forbids."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in MODULES:
                    yield node.lineno, f"import {alias.name}"
        elif isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module == "pickle" and names == {"UnpicklingError"}:
                continue  # what `torch.load(weights_only=True)` raises
            if (node.module or "").partition(".")[0] in MODULES:
                yield node.lineno, f"from {node.module} import"
            elif node.module in ("torch", "numpy") and names & {"load", "fromfile", "memmap"}:
                yield node.lineno, f"from {node.module} import load: call it by its full name"
        elif isinstance(node, ast.Call):
            name, keywords = dotted(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
            if name in NAMES:
                yield node.lineno, f"{name}()"
            elif any(name == call or name.endswith(f".{call}") for call in CALLS):
                yield node.lineno, f"{name}()"
            elif name == "torch.load" and not is_constant(keywords.get("weights_only"), True):
                yield node.lineno, "torch.load() without weights_only=True"
            elif name in ("np.load", "numpy.load") and not is_constant(keywords.get("allow_pickle"), False):
                yield node.lineno, "numpy.load() without allow_pickle=False"
            elif name.endswith(("read_array", "open_memmap")) and not is_constant(keywords.get("allow_pickle"), False):
                yield node.lineno, f"{name}() without allow_pickle=False"
            elif "shell" in keywords and not is_constant(keywords["shell"], False):
                yield node.lineno, f"{name}() through a shell"
            elif is_constant(keywords.get("trust_remote_code"), True):
                yield node.lineno, f"{name}() trusts code of others"
            elif is_constant(keywords.get("allow_pickle"), True) or is_constant(keywords.get("weights_only"), False):
                yield node.lineno, f"{name}() unpickles"


def is_constant(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_runs_what_a_file_brings(path):
    found = list(unsafe(ast.parse(path.read_text(encoding="utf-8"))))
    if path == READS_PICKLES:
        found = [what for what in found if what[1] != "import pickle"]
    assert not found


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from pickle import loads", "import yaml", "import joblib as j", "from marshal import load",
        "torch.load(p)", "torch.load(p, weights_only=False)", "torch.load(p, weights_only=flag)", "np.load(p)",
        "numpy.load(p, allow_pickle=True)", "from torch import load", "eval(text)", "exec(text)", "os.system(text)",
        "subprocess.run(text, shell=True)", "archive.extractall(folder)", "shutil.unpack_archive(p)",
        "np.lib.format.read_array(stream)", "datasets.load_dataset(n, trust_remote_code=True)", "pd.read_pickle(p)",
        "torch.hub.load('a/b', 'c')", "read_array(stream, allow_pickle=True)", "import tarfile", "compile(t, f, m)",
    ],
)  # fmt: skip
def test_what_is_forbidden_is_found(line):
    assert list(unsafe(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(p, weights_only=True)", "np.load(p, allow_pickle=False)", "model.eval()", "torch.compile(model)",
        "re.compile(pattern)", "json.loads(text)", "subprocess.run([a], shell=False)", "np.savez(p)",
        "evaluator.eval(x)",
    ],
)  # fmt: skip
def test_what_is_safe_is_not(line):
    assert not list(unsafe(ast.parse(line)))
