"""Padding is not sketched: the rows that a model's attention mask marks, handed on to its layers."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from rmm_gnn.hf.targets import transformers_model
from rmm_gnn.row_masks import CurrentRowMask, remove_mask_hooks

_ARGUMENT = "attention_mask"


class _Pass:
    """A forward pass of a model, which lives as long as what backward needs of it: its nodes hold it as their hook."""

    def __init__(self, number: int, mask: Tensor | None) -> None:
        self.number, self.mask = number, mask
        self.done = False
        self._task = -1
        self._compared, self._differs = number, False

    def tie(self, tensor: Any) -> None:
        """Let the node that ``tensor`` comes from hold the pass."""
        if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
            tensor.grad_fn.register_prehook(self._enter)

    def differs(self, latest: _Pass) -> bool:
        """Whether the masks differ; compared once, since a GPU has to be waited for."""
        if self._compared != latest.number:
            self._compared, self._differs = latest.number, not _equal(self.mask, latest.mask)
        return self._differs

    def give_up(self) -> None:
        """After an error nothing of the pass waits, unless backward runs through it anew."""
        self._task, self.done = -1, True

    def _enter(self, grad_outputs: Any) -> None:
        """Backward runs through the pass, perhaps not for the first time; at its end nothing of the pass waits."""
        task = torch._C._current_graph_task_id()
        if task != self._task:
            self._task, self.done = task, False
            torch.autograd.Variable._execution_engine.queue_callback(self._leave)

    def _leave(self) -> None:
        self.done = True


class AttentionRows(CurrentRowMask):
    """A forward pre-hook, with keyword arguments, that takes the rows from a 2-D ``attention_mask`` [batch, tokens].

    Layers know a mask by its shape.  Where another input could have the shape by chance there is none: for one sequence
    (tables of relative positions have a leading 1) and for as many as there are tokens (some models read tokens first).
    Nor is there one in replicas of a model that run in threads.  Passes that keep nothing leave the mask alone.

    Under activation checkpointing a block is recomputed with the mask of the latest pass.  An earlier pass with another
    mask is an error while its graph lives and backward has not run through it, even if it never will: outputs that are
    kept without need have to be detached.  ``follow`` is the forward hook that ties a pass to the graph of its outputs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._latest = _Pass(0, None)
        self._earlier: list[weakref.ref[_Pass]] = []

    def __call__(self, model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (model.training and torch.is_grad_enabled()):
            return
        given: Any = kwargs.get(_ARGUMENT)
        if given is None and len(args) > 1:
            given = inspect.signature(model.forward).bind_partial(*args).arguments.get(_ARGUMENT)
        self.mask = None
        if isinstance(given, Tensor) and given.dim() == 2 and not hasattr(model, "_is_replica"):
            batch, tokens = given.shape
            if batch not in (1, tokens):
                self.mask = given.ne(0)
        if not torch.compiler.is_compiling():
            self._earlier = [one for one in [*self._earlier, weakref.ref(self._latest)] if one() is not None]
            self._latest = _Pass(self._latest.number + 1, self.mask)

    def follow(self, model: Module, args: tuple[Any, ...], output: Any) -> None:
        """Remember the pass for as long as the graph of one of its outputs lives."""
        if model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            for leaf in tree_leaves(output):
                self._latest.tie(leaf)

    def of(self, x: Tensor) -> Tensor | None:
        """Return the mask of the latest pass, where x has its shape.

        Raises:
            RuntimeError: If backward recomputes a checkpointed block, and nobody can tell of which of two passes.
        """
        if not torch.compiler.is_compiling():
            if torch._C._current_graph_task_id() == -1:
                # Also for a loss of what is taken from within the model, and is none of its outputs.
                self._latest.tie(x)
            else:
                self._check_recomputation()
        return super().of(x)

    def _check_recomputation(self) -> None:
        earlier = [one for one in (ref() for ref in self._earlier) if one is not None]
        if any(one.differs(self._latest) for one in earlier if not one.done):
            for one in [*earlier, self._latest]:
                one.give_up()
            raise RuntimeError(
                "row_mask needs one backward pass after each forward pass under activation checkpointing (got a "
                "forward pass with another mask before the latest, which still waits for its backward pass): a block "
                "of the earlier would be recomputed with the rows of the latest. Concatenate the batches, detach "
                "outputs that are kept without need, or leave row_mask or the checkpointing out."
            )


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one, other)


def reader_of_tokens(model: Module) -> Module:
    """The module whose ``attention_mask`` is that of its layers' inputs; of an encoder with a decoder, the encoder.

    A decoder's layers read rows of its own and of the encoder's, which may be as many.

    Raises:
        ValueError: If there is none.
    """
    inner: Any = transformers_model(model.modules())
    reader = model if inner is None else inner
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        reader = inner.get_encoder()
    if _ARGUMENT not in inspect.signature(reader.forward).parameters:
        raise ValueError(
            f"'row_mask' must be False for a model that takes no 'attention_mask' (got True for "
            f"{type(reader).__name__}). Sketch all rows, or use compress_activations(row_mask=...)."
        )
    return reader


def mask_rows(converted: Collection[Module], layers: Collection[Module], reader: Module | None) -> None:
    """Let the converted layers within ``reader`` sketch its marked rows; the others, or all without one, every row."""
    within: set[int] = set()
    rows: CurrentRowMask | None = None
    if reader is not None:
        within = {id(module) for module in reader.modules()}
        hooks: Collection[Any] = reader._forward_pre_hooks.values()
        rows = next((hook for hook in hooks if isinstance(hook, AttentionRows)), None)
        if rows is None:
            rows = AttentionRows()
            reader.register_forward_pre_hook(rows, with_kwargs=True)
            reader.register_forward_hook(rows.follow)
    for layer in converted:
        vars(layer).pop("row_masks", None)
        if id(layer) in within and hasattr(type(layer), "row_masks"):
            vars(layer)["row_masks"] = rows
    if not any("row_masks" in vars(layer) for layer in layers):
        for layer in layers:
            remove_mask_hooks(layer)
