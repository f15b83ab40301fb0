"""Padding is not sketched: the rows that a model's attention mask marks, handed on to its layers."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rmm_gnn.hf.targets import transformers_model
from rmm_gnn.row_masks import CurrentRowMask, remove_mask_hooks

_ARGUMENT = "attention_mask"


class AttentionRows(CurrentRowMask):
    """A forward pre-hook, with keyword arguments, that takes the rows from a 2-D ``attention_mask`` [batch, tokens].

    Layers know a mask by its shape.  Where another input could have the shape by chance there is none: for one sequence
    (tables of relative positions have a leading 1) and for as many as there are tokens (some models read tokens first).
    Nor is there one in replicas of a model that run in threads.  Passes that keep nothing leave the mask alone.
    """

    def __init__(self) -> None:
        super().__init__()
        # Masks of the latest two passes since a checkpointed block was recomputed.
        self._waiting: list[Tensor | None] = []

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
            self._waiting = [*self._waiting[-1:], self.mask]

    def of(self, x: Tensor) -> Tensor | None:
        """Return the mask of the latest pass, where x has its shape.

        Raises:
            RuntimeError: If backward recomputes a checkpointed block, and nobody can tell of which of two passes.
        """
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            waiting, self._waiting = self._waiting, []
            if len(waiting) == 2 and not _equal(*waiting):
                raise RuntimeError(
                    "row_mask needs one backward pass after each forward pass under activation checkpointing (got two "
                    "forward passes with different masks before it): a block of the first would be recomputed with "
                    "the rows of the second. Concatenate the batches, or leave row_mask or the checkpointing out."
                )
        return super().of(x)


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
    for layer in converted:
        vars(layer).pop("row_masks", None)
        if id(layer) in within and hasattr(type(layer), "row_masks"):
            vars(layer)["row_masks"] = rows
    if not any("row_masks" in vars(layer) for layer in layers):
        for layer in layers:
            remove_mask_hooks(layer)
