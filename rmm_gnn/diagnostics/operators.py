"""Names of operators: of the public function that was called, or of the autograd.Function that was applied."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name

OWN_PREFIX = "rmm_gnn."
UNKNOWN = "(unknown)"

_APPLY: CodeType = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]
# The Function that `torch.library.register_autograd` generates for operator `namespace::name`, overload `default`.
_GENERATED = re.compile(r"GeneratedBackwardFor_(?:rmm_gnn_(?P<own>.+)|.+)_default")


class CurrentFunction(TorchFunctionMode):
    """While entered, knows the outermost public function of torch that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.function: Callable[..., Any] | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # The mode is off while it handles a call, so functions that `func` calls do not arrive here.
        before, self.function = self.function, func
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.function = before


def operator_name(public: Callable[..., Any] | None, frame: FrameType) -> str:
    """Name what saves a tensor: operators of this library by themselves, others by the public function around them.

    Modes do not see functions that are applied.  Their nodes could be found in the graph, but not those of checkpointed
    blocks, which hang on an output that nothing uses; so the frame that the pack hook was called from tells.

    Args:
        public: The public function that is running, if any.
        frame: The Python frame in which autograd called the pack hook.
    """
    applied = frame.f_locals["cls"] if frame.f_code is _APPLY else None
    own = None if applied is None else own_name(applied)
    if own is not None:
        return own
    if public is not None:
        return function_name(public)
    if applied is not None:
        return applied.__name__
    return "checkpoint" if frame.f_globals.get("__name__") == "torch.utils.checkpoint" else UNKNOWN


def own_name(applied: type[torch.autograd.Function]) -> str | None:
    """``rmm_gnn.<name>`` for the functions and operators of this package, else None."""
    generated = _GENERATED.fullmatch(applied.__name__)
    if generated:
        return OWN_PREFIX + generated["own"] if generated["own"] else None
    return OWN_PREFIX + applied.__name__ if applied.__module__.startswith(OWN_PREFIX) else None


def function_name(function: Callable[..., Any]) -> str:
    """Short name of a public function: ``relu`` for ``F.relu``, ``torch.relu`` and ``Tensor.relu`` alike.

    Operators of libraries keep their namespace: ``torch_scatter.segment_csr``.
    """
    name = resolve_name(function) or getattr(function, "__name__", None) or str(function)
    if "." in name and not name.startswith("torch."):
        return name
    last = name.removesuffix(".__get__").rpartition(".")[2].lstrip("_")
    return last.removesuffix("__")
