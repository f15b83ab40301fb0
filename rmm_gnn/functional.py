"""Functional form of the layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.rmm_linear  # noqa: F401  (registers the operators)
from rmm_gnn._validation import check_floating, check_linear_shapes, check_seed
from rmm_gnn.autograd.shared_input_linear import SharedInputLinear
from rmm_gnn.config import RMMConfig
from rmm_gnn.seeding import draw_seed


def rmm_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None = None,  # [M]
    *,
    config: RMMConfig,
    seed: Tensor | int | None = None,
) -> Tensor:  # [*, M]
    r"""Linear layer that keeps a sketch of its input; all is exact but the weight gradient, an unbiased estimate.

    .. math::
        \hat{X} = X W^T + 1 b^T, \qquad \partial W \approx (S^T Y)^T (S^T X), \qquad \partial X = Y W, \qquad
        \partial b = Y^T 1

    with X the input flattened to [B, N], Y the gradient of the output, S [B, k] random with E[S S^T] = I
    (Algorithm 1, eq. 1-4): the estimate is unbiased.  Kept for backward are the sketch and what
    ``RMMConfig.saved_bytes`` lists, and ``weight`` if x needs a gradient; x itself is not, and may be changed in place.

    Where there is nothing to estimate (``weight`` needs no gradient, grad mode is off, no rows) this is
    ``torch.nn.functional.linear`` and nothing is kept.  Under autocast, arguments are cast as ``linear`` casts them;
    each call then keeps its own low-precision copy of ``weight``: torch's cache of such copies is out of reach here.

    Besides the workspace, an x whose leading dimensions cannot be flattened in place is copied for the duration of the
    call, and so is an x that autocast converts, as in ``linear``.

    Args:
        x: Input, float32, float64, bfloat16 or float16.
        weight: Weight of the same type.
        bias: Bias of the same type, or None.
        config: What to keep.
        seed: Decides S: an int64 scalar tensor on the device of x from ``draw_seed``, or an int.  If None, drawn from
            PyTorch's default generator whenever ``weight`` requires a gradient, whether or not grad mode is on.  The
            same seed gives the same S; one that stays fixed over training turns the noise into a persistent error.

    Returns:
        The exact output.

    Raises:
        TypeError: If a tensor is not a dense floating-point one, types differ, or ``config`` is not an ``RMMConfig``.
        ValueError: If shapes or devices do not fit.
        RuntimeError: In backward, if it is run with ``create_graph=True``.

    Example:
        >>> x, weight = torch.randn(100, 8), torch.randn(4, 8, requires_grad=True)
        >>> out = rmm_linear(x, weight, config=RMMConfig(rate=0.1))
        >>> torch.allclose(out, x @ weight.T, atol=1e-5)
        True
        >>> out.sum().backward()
        >>> weight.grad.shape
        torch.Size([4, 8])

    References:
        D. Bershatsky et al., *Memory-Efficient Backpropagation through Large Linear Layers* (2022).
    """
    if not isinstance(config, RMMConfig):
        raise TypeError(f"'config' must be an RMMConfig (got {type(config).__name__}). Write RMMConfig(rate=0.1).")
    check_floating("x", x)
    x, weight, bias = _as_autocast(x, weight, bias)
    check_floating("weight", weight)
    check_linear_shapes(x, weight, bias)

    if seed is not None:
        seed = check_seed(seed, x.device)
    elif weight.requires_grad:
        # Also with grad mode off: reentrant checkpointing runs its first pass so, and must advance the generator.
        seed = draw_seed(x)
    if seed is None or not weight.requires_grad or x.numel() == 0:
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return torch.ops.rmm_gnn.exact_linear(x, weight, bias, seed)

    out, _ = torch.ops.rmm_gnn.linear(x.reshape(-1, x.shape[-1]), weight, bias, seed, *config.to_fields())
    return out.reshape(*x.shape[:-1], weight.shape[0])


def shared_input_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
) -> Tensor:  # [*, M]
    """Exact linear map that keeps x itself, also under autocast, where ``linear`` would keep a converted copy.

    For an input that other layers keep anyway, such as the x_0 of GCN2: it is then kept once.  The converted copy lives
    for the duration of the call, in forward and again in backward.

    Raises:
        RuntimeError: In backward under autocast, if it is run with ``create_graph=True``.
    """
    dtype = _autocast_dtype(x)
    if dtype is None or dtype == x.dtype == weight.dtype:
        return F.linear(x, weight)
    return SharedInputLinear.apply(x, weight, dtype)


def _as_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cast as ``linear`` would under autocast, before the operator, so that the sketch is kept in the low type too."""
    dtype = _autocast_dtype(x)
    if dtype is None:
        return x, weight, bias

    def cast(tensor: Tensor) -> Tensor:
        eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible else tensor

    return cast(x), cast(weight), None if bias is None else cast(bias)


def _autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast computes linear layers of ``x`` in, or None where it leaves them alone."""
    device_type = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device_type):
        return None
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
