"""Compiles the package's C kernels when it is installed or a wheel is built, where there is a compiler."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "rmm_gnn/kernels"


class CustomBuildHook(BuildHookInterface):
    """Adds the library to wheels, editable ones included; where it cannot be built, `pip install -v` says why."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        # By its path: the package itself cannot be imported without torch.
        spec = importlib.util.spec_from_file_location("building", Path(self.root, KERNELS, "building.py"))
        assert spec is not None and spec.loader is not None
        building = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(building)
        problem = building.compile_library()
        if problem:
            self.app.display_warning(f"rmm_gnn is installed without compiled kernels: {problem}")
            return
        build_data["artifacts"].append(f"/{KERNELS}/{building.LIBRARY.name}")
        build_data["pure_python"] = False
        # The library is loaded by ctypes: it serves every Python of this platform.
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
