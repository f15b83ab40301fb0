"""Dropout without a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.dropout  # noqa: F401  (registers the operators)
from rmm_gnn._validation import check_choice, check_floating, check_probability, check_seed, check_tensor
from rmm_gnn.functional._calling import needs_grad, overridable, refuse_transforms, returned
from rmm_gnn.functional.activations import relu
from rmm_gnn.kernels import BACKENDS
from rmm_gnn.seeding import draw_seed


@overridable
def dropout(
    x: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    seed: Tensor | int | None = None,
    backend: str = "auto",
) -> Tensor:
    """``torch.nn.functional.dropout`` that keeps a seed instead of a mask; the gradient is exact.

    Every entry is kept with probability 1 - p, to within 2^-32, independently of the others, and scaled by 1/(1 - p).
    The mask is hashed from the seed in forward and again in backward.

    Args:
        x: Any shape.
        p: Probability of an entry to be dropped.
        training: If False, x is returned as it is.
        inplace: Overwrite x with the output.
        seed: Decides the mask; drawn afresh at every call if None.
        backend: Which implementation, as in ``RMMConfig``.

    Returns:
        The output, of the shape of x.

    Raises:
        ValueError: If p is not in [0, 1], or ``backend`` is unknown or does not take x.
        TypeError: If p is not a number, or x is not a dense floating-point tensor.
        ImportError: If what ``backend`` needs is not installed.
        RuntimeError: Under transforms of ``torch.func`` or forward-mode differentiation; in backward, if it is run with
            ``create_graph=True``.

    Example:
        >>> x = torch.ones(4, requires_grad=True)
        >>> out = dropout(x, 0.5, seed=3)
        >>> out.sum().backward()
        >>> torch.equal(out, x.grad)
        True
    """
    p = check_probability(p)
    check_tensor("x", x)
    check_choice("backend", backend, BACKENDS)
    if not training or p in (0.0, 1.0) or check_floating("x", x).numel() == 0:
        return F.dropout(x, p, training, inplace)
    refuse_transforms("dropout", x)
    seed = draw_seed(x) if seed is None else check_seed(seed, x.device)
    # The same mask without grad mode: a checkpointed block runs once without and once with.
    return returned(x, torch.ops.rmm_gnn.dropout(x, p, seed, backend)[0], inplace)


@overridable
def relu_dropout(
    x: Tensor, p: float = 0.5, training: bool = True, *, seed: Tensor | int | None = None, backend: str = "auto"
) -> Tensor:
    """Dropout of ReLU of x in one pass, with one bit for every entry in all; output and gradient are exact.

    ``dropout(relu(x), p)`` keeps the same bytes; this reads x once and recomputes no mask in backward.

    Args:
        x: Any shape.
        p: Probability of an entry to be dropped.
        training: If False, only ReLU.
        seed: Decides the mask; drawn afresh at every call if None.
        backend: Which implementation, as in ``RMMConfig``.

    Returns:
        The output, of the shape of x.

    Raises:
        ValueError: If p is not in [0, 1], or ``backend`` is unknown or does not take x.
        TypeError: If p is not a number, or x is not a dense floating-point tensor.
        ImportError: If what ``backend`` needs is not installed.
        RuntimeError: Under transforms of ``torch.func`` or forward-mode differentiation; in backward, if it is run with
            ``create_graph=True``.
    """
    p = check_probability(p)
    check_tensor("x", x)
    check_choice("backend", backend, BACKENDS)
    if not training or p in (0.0, 1.0) or check_floating("x", x).numel() == 0:
        return F.dropout(relu(x, backend=backend), p, training)
    refuse_transforms("relu_dropout", x)
    seed = draw_seed(x) if seed is None else check_seed(seed, x.device)
    if not needs_grad(x):
        return torch.ops.rmm_gnn.dropout(F.relu(x), p, seed, backend)[0]
    return torch.ops.rmm_gnn.relu_dropout(x, p, seed, backend)[0]
