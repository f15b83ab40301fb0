"""The structure: imports point downward, nothing below ``nn`` knows PyG, and importing has no side effect."""

import ast
import subprocess
import sys
from pathlib import Path

import rmm_gnn

PACKAGE = Path(rmm_gnn.__file__).parent
# From the bottom to the top; a module may import from its own layer's siblings only within one package folder.
LAYERS = [
    {"_validation", "_files", "wrapped"},
    {"seeding"},
    {"permutation"},
    {"kernels"},
    {"sketches", "codecs"},
    {"config", "control_variates", "row_masks"},
    {"anchor"},
    {"compression", "sharing"},
    {"autograd"},
    {"functional"},
    {"nn", "context", "diagnostics"},
    {"convert", "baselines"},
    {"planning"},
    {"hf"},
    {"__init__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
ABOVE_NN = {"nn", "convert", "baselines", "planning", "hf", "__init__"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module


def part(path):
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def test_every_module_has_a_layer():
    assert {part(path) for path in PACKAGE.rglob("*.py")} == set(LEVEL)


def test_imports_point_downward():
    for path in PACKAGE.rglob("*.py"):
        own = part(path)
        for name in imports(path):
            assert own == "__init__" or name != "rmm_gnn", f"{path.relative_to(PACKAGE)} imports from the root"
            assert own == "hf" or not name.startswith("rmm_gnn.hf"), f"{path.relative_to(PACKAGE)} imports the adapter"
            if name.startswith("rmm_gnn.") and name.split(".")[1] != own:
                assert LEVEL[name.split(".")[1]] < LEVEL[own], f"{path.relative_to(PACKAGE)} imports {name}"


def test_below_nn_is_free_of_pyg():
    for path in PACKAGE.rglob("*.py"):
        if part(path) not in ABOVE_NN:
            assert not any(name.startswith("torch_geometric") for name in imports(path)), path


def test_import_loads_no_extra_and_touches_no_random_state():
    extras = ["ogb", "sklearn", "matplotlib", "tabulate", "tqdm", "torch_scatter", "triton"]
    extras += ["transformers", "datasets", "accelerate", "peft"]
    code = (
        "import sys, torch, torch_geometric\n"
        "before, state = set(sys.modules), torch.get_rng_state()\n"
        "import rmm_gnn, rmm_gnn.hf\n"
        f"loaded = [m for m in {extras!r} if m in set(sys.modules) - before]\n"
        "assert not loaded, loaded\n"
        "assert torch.equal(state, torch.get_rng_state())\n"
        "print('clean')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "clean"
