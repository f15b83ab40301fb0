"""How much a model in training keeps for backward, looked at from within its forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from rmm_gnn.diagnostics.recorder import Recorder
from rmm_gnn.diagnostics.storages import StorageSizes, tensors_in


class SavedBytes(NamedTuple):
    """Bytes kept for backward when forward has ended, each storage once, parameters and inputs excepted.

    Attributes:
        saved_bytes: By all operators.
        compressed_bytes: By those of this library.
    """

    saved_bytes: int
    compressed_bytes: int


class WatchSaved:
    """Measures every training forward pass of ``model`` until ``remove``; as ``memory_report`` counts, in passing.

    Where gradients are accumulated, the largest of the passes counts.  Blocks under activation checkpointing save what
    they keep, not what they make anew in backward.  What the loss keeps counts if the model computes it.
    """

    def __init__(self, model: Module) -> None:
        self.largest: SavedBytes | None = None
        self._stack = ExitStack()
        self._recorder: Recorder | None = None
        self._inputs = StorageSizes([])
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, prepend=True, always_call=True),
        ]

    def remove(self) -> None:
        """Stop measuring."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, model: Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if torch.compiler.is_compiling() or not (model.training and torch.is_grad_enabled()):
            return
        self._inputs = StorageSizes(tensors_in(args, dict(kwargs)))
        self._recorder = Recorder()
        # Of no module in particular: which of them keeps what is not asked for here.
        self._stack.enter_context(self._recorder.watch(Module()))

    def _leave(self, model: Module, args: Any, output: Any) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        self._stack.close()
        owned: list[Tensor] = [*model.parameters(), *model.buffers()]
        entries, _, _ = recorder.entries(parameters=StorageSizes(owned), inputs=self._inputs)
        self._inputs = StorageSizes([])
        found = SavedBytes(
            sum(entry.saved_bytes for entry in entries),
            sum(entry.saved_bytes for entry in entries if entry.compressed),
        )
        self.largest = found if self.largest is None else max(self.largest, found)
