"""What users import: names, docstrings and signatures. Runs against an installed package from an empty folder, too.

python tests/public_api/test_public_api.py    # after a change that is meant: writes signatures.txt again
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

import rmm_gnn

SNAPSHOT = Path(__file__).with_name("signatures.txt")
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
# The only public names that need an optional package.
OF_TRANSFORMERS = ("rmm_gnn.hf.RMMConv1D", "rmm_gnn.hf.RMMTrainerCallback")


def public_modules() -> list[str]:
    """The package and those of its packages that say what is public."""
    found = ["rmm_gnn"]
    for info in pkgutil.walk_packages(rmm_gnn.__path__, "rmm_gnn."):
        if info.ispkg and "._" not in info.name and hasattr(importlib.import_module(info.name), "__all__"):
            found.append(info.name)
    return sorted(found)


def names_of(module: str) -> list[str]:
    """Sorted, without those that need a package that is not there."""
    names = sorted(importlib.import_module(module).__all__)
    return [name for name in names if HAS_TRANSFORMERS or f"{module}.{name}" not in OF_TRANSFORMERS]


def signature(value: Any) -> str:
    """Without what versions of Python write differently around annotations."""
    try:
        text = str(inspect.signature(value)).replace("'", "").replace('"', "")
        return re.sub(r"ForwardRef\((\w+)\)", r"\1", text)
    except (TypeError, ValueError):
        return "(...)"


def describe(name: str, value: Any) -> Iterator[str]:
    """A line for what a name stands for, and of a class one for each public method that it defines or redefines."""
    if not inspect.isclass(value):
        yield f"{name}{signature(value)}" if callable(value) else f"{name}: {type(value).__name__}"
        return
    yield f"class {name}{signature(value)}"
    for member, attribute in sorted(vars(value).items()):
        if member.startswith("_"):
            continue
        if isinstance(attribute, property | cached_property):
            yield f"{name}.{member}: property"
        # PyG writes methods of convolutions when the first one is made, in modules of its own.
        elif is_generated(attribute):
            continue
        elif isinstance(attribute, classmethod | staticmethod) or inspect.isfunction(attribute):
            yield f"{name}.{member}{signature(getattr(value, member))}"


def is_generated(method: Any) -> bool:
    code = getattr(method, "__code__", None)
    return code is not None and not Path(code.co_filename).is_relative_to(Path(rmm_gnn.__file__).parent)


def lines() -> list[str]:
    """The whole public interface; what has several names is described at the first."""
    first: dict[int, str] = {}
    found = []
    for module in MODULES:
        for name in names_of(module):
            value, path = getattr(importlib.import_module(module), name), f"{module}.{name}"
            if first.setdefault(id(value), path) == path:
                found += describe(path, value)
            else:
                found.append(f"{path} = {first[id(value)]}")
    return found


MODULES = public_modules()


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_there_and_documented(module):
    found = importlib.import_module(module)
    names = found.__all__
    assert len(set(names)) == len(names)
    assert found.__doc__
    for name in names_of(module):
        value = getattr(found, name)
        if inspect.isclass(value) or callable(value):
            assert inspect.getdoc(value), f"{module}.{name} has no docstring"
            # One that a class has from torch says nothing of what it does otherwise.
            assert not inspect.isclass(value) or value.__doc__, f"{module}.{name} has no docstring of its own"


def test_the_interface_is_the_one_written_down():
    optional = (
        () if HAS_TRANSFORMERS else tuple(f"{start}{name}" for name in OF_TRANSFORMERS for start in ("class ", ""))
    )
    expected = [line for line in SNAPSHOT.read_text().splitlines() if not line.startswith(optional)]
    # Meant? Run this file with python to write it down again, and note the change in CHANGELOG.md.
    assert lines() == expected


def test_the_version_is_that_of_the_distribution():
    assert importlib.metadata.version("rmm_gnn") == rmm_gnn.__version__


def test_types_and_sources_come_with_the_package():
    folder = Path(rmm_gnn.__file__).parent
    assert (folder / "py.typed").exists()
    assert list((folder / "kernels" / "csrc").glob("*.c"))


if __name__ == "__main__":
    SNAPSHOT.write_text("".join(f"{line}\n" for line in lines()))
