"""A linear map of dropout of a tensor that the caller keeps in any case."""

from __future__ import annotations

import torch
from torch import Tensor

import rmm_gnn.autograd.linear_of_dropped  # noqa: F401  (registers the operator)
from rmm_gnn.functional._calling import as_autocast


def linear_of_dropped(
    x: Tensor,  # [*, N]
    source: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None = None,  # [M]
    *,
    p: float,
    seed: Tensor,
) -> Tensor:  # [*, M]
    """``linear`` of ``x = dropout(source, p, seed=seed)`` that keeps ``source`` and the seed in the place of x.

    Output and all gradients are exact; backward makes the rows of x again, 4 MiB at a time (a ``source`` that cannot
    be flattened in place is copied for that time).

    Args:
        x: What dropout made of ``source``.
        source: What it was made of; changing it in place before backward raises torch's error.
        weight: Weight.
        bias: Bias, or None.
        p: Probability of dropout.
        seed: Of the mask.

    Returns:
        The output.

    Raises:
        RuntimeError: In backward, if it is run with ``create_graph=True``, or ``source`` was changed in place.
    """
    x, weight, bias = as_autocast(x, weight, bias, like=x)  # type: ignore[assignment]
    rows, made_of = (tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, source.detach()))
    out = torch.ops.rmm_gnn.linear_of_dropped(rows, made_of, weight, bias, p, seed)
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], out.shape[-1])
