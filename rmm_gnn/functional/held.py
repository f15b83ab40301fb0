"""Exact products of tensors that the caller keeps in any case, and of dropout of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.held_addmm  # noqa: F401  (registers the operators)
from rmm_gnn.functional._calling import as_autocast, autocast_dtype, refuse_transforms


def held_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None = None,  # [M]
    *,
    source: Tensor | None = None,  # [*, N]
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:  # [*, M]
    """``linear`` that keeps x itself, or what it was dropped out of and the seed.

    Output and all gradients are exact.  Where torch's own function keeps x itself it is called.  Elsewhere, that is
    with a ``source``, under autocast, and where the leading dimensions of x may not be flattened in place, backward
    makes the rows again, 4 MiB at a time; what cannot be flattened is copied for the time of either pass.  Under
    autocast, an x that needs a gradient makes the call keep a low-precision copy of ``weight``.

    Args:
        x: Input.
        weight: Weight.
        bias: Bias, or None.
        source: What dropout made x of; None if x was not dropped out.
        p: Probability of that dropout.
        seed: Of its mask.

    Returns:
        The output.

    Raises:
        RuntimeError: In backward, if what is kept was changed in place, or, where this is not torch's own function, if
            it is run with ``create_graph=True``.
    """
    if source is None and not _is_copied(x):
        return F.linear(x, weight, bias)
    refuse_transforms("a product of what is kept", x, weight, bias, source)
    kept = (x if source is None else source).detach()
    x, weight, bias = as_autocast(x, weight, bias, like=x)  # type: ignore[assignment]
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    out = torch.ops.rmm_gnn.held_addmm(bias, rows, kept, weight.t(), 1.0, 1.0, p, seed)
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], out.shape[-1])


def held_addmm(
    input: Tensor,  # broadcasts to [B, M]
    mat1: Tensor,  # [B, N]
    mat2: Tensor,  # [N, M]
    *,
    beta: float = 1,
    alpha: float = 1,
    source: Tensor | None = None,  # [B, N]
    p: float = 0.0,
    seed: Tensor | None = None,
) -> Tensor:  # [B, M]
    """``torch.addmm`` that keeps ``mat1`` itself, or what it was dropped out of and the seed; see ``held_linear``.

    Args:
        input: Added to the product, times ``beta``.
        mat1: Left factor.
        mat2: Right factor.
        beta: Factor of ``input``.
        alpha: Factor of the product.
        source: What dropout made ``mat1`` of; None if it was not dropped out.
        p: Probability of that dropout.
        seed: Of its mask.

    Returns:
        The output.

    Raises:
        RuntimeError: As torch raises it, or in backward, as ``held_linear`` does.
    """
    if source is None and not _is_copied(mat1):
        return torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha)
    refuse_transforms("a product of what is kept", input, mat1, mat2, source)
    kept = (mat1 if source is None else source).detach()
    input, mat1, mat2 = as_autocast(input, mat1, mat2, like=mat1)  # type: ignore[assignment]
    return torch.ops.rmm_gnn.held_addmm(input, mat1, kept, mat2, float(beta), float(alpha), p, seed)


def _is_copied(x: Tensor) -> bool:
    """Whether torch's function would keep a copy of x, which autocast converts or which it flattens first."""
    return autocast_dtype(x) not in (None, x.dtype) or (x.dim() > 2 and not x.is_contiguous())
