"""Running a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

# Dictionaries of a module that forward may rebind entries of.
_REGISTRIES = ("_parameters", "_buffers", "_modules")


@contextmanager
def left_as_found(model: Module) -> Iterator[None]:
    """Put buffers, attributes and the training flags of every module back on the way out, also after an exception.

    Attributes are put back as the objects they were: caches that forward fills are dropped, lists that it appends to
    keep what it appended.  Buffers are copied meanwhile: batch normalisation changes them without a new version.
    """
    modules = list(model.modules())
    attributes = [(module, dict(module.__dict__)) for module in modules]
    registries = [(module.__dict__[name], dict(module.__dict__[name])) for module in modules for name in _REGISTRIES]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, found in attributes:
            _put_back(module.__dict__, found)
        for registry, found in registries:
            _put_back(registry, found)
        for buffer, values in buffers:
            # Through `data`, unseen by autograd: a graph that has saved the buffer finds it as it was.
            buffer.data.copy_(values)


def _put_back(registry: dict[str, Any], found: dict[str, Any]) -> None:
    if registry.keys() != found.keys() or any(registry[name] is not found[name] for name in found):
        registry.clear()
        registry.update(found)


class SetAsideGradients:
    """Takes the ``.grad`` of tensors away, and gives the same objects back."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[Tensor, Tensor | None]] = {}

    def take(self, leaves: Iterable[Tensor]) -> None:
        for leaf in leaves:
            if id(leaf) not in self._found:
                self._found[id(leaf)] = leaf, leaf.grad
                leaf.grad = None

    def clear(self) -> None:
        for leaf, _ in self._found.values():
            leaf.grad = None

    def give_back(self) -> None:
        for leaf, grad in self._found.values():
            leaf.grad = grad


def leaves_of(root: Tensor) -> Iterator[Tensor]:
    """Yield the tensors whose ``.grad`` backward from ``root`` would write, checkpointed blocks excepted."""
    waiting: list[Any] = [root.grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)  # of a node that accumulates a gradient
        if isinstance(leaf, Tensor):
            yield leaf
        following = {child for child, _ in node.next_functions if child is not None} - seen
        seen |= following
        waiting.extend(following)


@contextmanager
def same_random_numbers(devices: Collection[torch.device]) -> Iterator[None]:
    """Draw from PyTorch's default generators as if nothing had been drawn before, and leave them so."""
    cuda = [device.index or 0 for device in devices if device.type == "cuda"]
    with torch.random.fork_rng(cuda):
        yield
