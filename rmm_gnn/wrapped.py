"""The class of a module behind the one that PyTorch's distributed wrappers give it.

``fully_shard(layer)`` makes the class of ``layer`` a new one, whose bases are the wrapper and the class that it was.
"""

from __future__ import annotations

from typing import Any

from torch.nn import Module


def is_wrapped(cls: type[Module]) -> bool:
    """Whether ``cls`` is a class with a distributed wrapper around it."""
    # By the wrapper's module: to import the wrappers takes a second, and whoever has such a model has imported them.
    return len(cls.__bases__) == 2 and cls.__bases__[0].__module__.startswith("torch.distributed.")


def class_behind(cls: type[Module]) -> type[Module]:
    """Return the class that distributed wrappers were put around, or ``cls`` where none was."""
    return class_behind(cls.__bases__[1]) if is_wrapped(cls) else cls


def change_class(module: Module, cls: type[Module]) -> None:
    """Make ``cls`` the class of ``module``, within the wrappers that are around the one it has."""
    module.__class__ = _wrapped_as(type(module), cls)


def _wrapped_as(wrapped: Any, cls: type[Module]) -> type[Module]:
    """Return ``cls`` in the wrappers of ``wrapped``: itself where there are none, or where they are around it."""
    if class_behind(wrapped) is cls:
        return wrapped
    if not is_wrapped(wrapped):
        return cls
    wrapper, behind = wrapped.__bases__
    inner = _wrapped_as(behind, cls)
    own = {name: value for name, value in vars(wrapped).items() if name not in ("__module__", "__doc__")}
    return type(wrapped.__name__.removesuffix(behind.__name__) + inner.__name__, (wrapper, inner), own)
