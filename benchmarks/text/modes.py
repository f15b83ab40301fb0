"""Two things that neither a converted model nor ``compress_activations`` is asked for elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class MaskedRows(TorchFunctionMode):
    """While active, converted layers sketch the rows that a mask marks, as ``compress_activations`` would have it.

    Args:
        row_mask: Taken by layers whose input has leading dimensions of its shape; others sketch all rows.
    """

    def __init__(self, row_mask: Tensor) -> None:
        super().__init__()
        self._row_mask = row_mask

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from rmm_gnn import rmm_linear
        from rmm_gnn.sharing import note_config

        kwargs = kwargs or {}
        if func is not rmm_linear or args[0].shape[:-1] != self._row_mask.shape:
            return func(*args, **kwargs)
        return note_config(func(*args, **(kwargs | {"row_mask": self._row_mask})), None, self._row_mask)


def leave_to_torch(layers: Iterable[nn.Module]) -> None:
    """Hide layers from every mode: ``compress_activations`` would sketch what they read, converted or not."""
    for layer in layers:
        active: list[Any] = []

        def enter(module: nn.Module, args: Any, active: list[Any] = active) -> None:
            active.append(torch._C.DisableTorchFunction())
            active[-1].__enter__()

        def leave(module: nn.Module, args: Any, out: Any, active: list[Any] = active) -> None:
            active.pop().__exit__(None, None, None)

        layer.register_forward_pre_hook(enter)
        layer.register_forward_hook(leave, always_call=True)
