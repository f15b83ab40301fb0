"""The adapter for transformers: models of that library, trained through sketches.

``import rmm_gnn.hf`` works without transformers, as does ``apply_rmm`` on models of other origin.  What is a class of
transformers with something added is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rmm_gnn.convert import revert_rmm
from rmm_gnn.hf.apply import apply_rmm
from rmm_gnn.hf.arguments import RMMArguments
from rmm_gnn.hf.config import read_config

if TYPE_CHECKING:
    from rmm_gnn.hf.callback import RMMTrainerCallback
    from rmm_gnn.hf.conv1d import RMMConv1D

__all__ = ["apply_rmm", "revert_rmm", "read_config", "RMMArguments", "RMMConv1D", "RMMTrainerCallback"]

_NEED_TRANSFORMERS = {"RMMConv1D": "rmm_gnn.hf.conv1d", "RMMTrainerCallback": "rmm_gnn.hf.callback"}


def __getattr__(name: str) -> Any:
    if name not in _NEED_TRANSFORMERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NEED_TRANSFORMERS[name]), name)
