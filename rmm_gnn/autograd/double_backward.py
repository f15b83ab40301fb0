"""The refusal that every operator here shares."""

from __future__ import annotations

import torch


def refuse_double_backward(name: str) -> None:
    """Raise if backward runs with grad mode on: the gradient of an estimate would silently be zero or wrong.

    Raises:
        RuntimeError: If grad mode is on, as it is in a backward pass with ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{name} cannot be differentiated twice (got a backward pass with create_graph=True). "
            "Use torch.nn.functional.linear for layers whose gradient needs a gradient."
        )
