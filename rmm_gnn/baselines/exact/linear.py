"""The linear layer of EXACT: forward exact, the weight gradient from a projected, rounded input."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.rmm_linear  # noqa: F401  (registers the operator of calls without grad mode)
from rmm_gnn._validation import check_floating, check_linear_shapes, check_seed
from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.baselines.exact.config import ExactConfig
from rmm_gnn.baselines.exact.kept_input import keep_input, kept_like, weight_grad
from rmm_gnn.functional._calling import as_autocast
from rmm_gnn.seeding import draw_seed

_SEEDED = (torch.Tag.nondeterministic_seeded,)


def exact_linear(
    x: Tensor,  # [*, D]
    weight: Tensor,  # [M, D]
    bias: Tensor | None = None,  # [M]
    *,
    config: ExactConfig,
    seed: Tensor | int | None = None,
) -> Tensor:  # [*, M]
    r"""Linear layer that keeps its input projected along features, in few bits; all but the weight gradient is exact.

    .. math::
        \hat{X} = X W^T + 1 b^T, \qquad \partial W \approx (Y^T X_q) R^T, \qquad X_q = \mathrm{quantise}(X R), \qquad
        \partial X = Y W, \qquad \partial b = Y^T 1

    with X the input flattened to [B, D], Y the gradient of the output, R [D, r] independent signs over
    :math:`\sqrt{r}`, r = ceil(kept_frac D), generated again in backward, and each row of X R rounded at random between
    its minimum and maximum.  Since E[R R^T] = I and the rounding is unbiased for every R, so is the estimate.

    *Variance* (not in the paper), with G = Y^T X and :math:`v_{bk}` the rounding's variance of entry (b, k) of X R:

    .. math::
        \mathbb{E} \| (Y^T X_q) R^T - G \|_F^2
            = \frac{D - 1}{r} \| G \|_F^2 + \frac{D}{r} \, \mathbb{E}_R \sum_b |y_b|^2 \sum_k v_{bk}

    The first term is the projection's: a relative variance of (D - 1)/r whatever the data are and however many rows
    they have, 0 without a projection (r = D).

    Kept are ``config.saved_bytes`` bytes, and ``weight`` if x needs a gradient; x itself is not, and may be changed in
    place.  Where there is nothing to estimate (``weight`` needs no gradient, grad mode is off, no entries) this is
    ``torch.nn.functional.linear``.  Transient: 16 MiB for X R and as much for R, whatever B is.

    Args:
        x: Input, float32, float64, bfloat16 or float16.
        weight: Weight of the same type.
        bias: Bias of the same type, or None.
        config: What to keep.
        seed: Decides R and the rounding: an int64 scalar tensor on the device of x, or an int.  If None, drawn whenever
            ``weight`` requires a gradient, whether or not grad mode is on.

    Returns:
        The exact output.

    Raises:
        TypeError: If a tensor is not a dense floating-point one, types differ, or ``config`` is not an ``ExactConfig``.
        ValueError: If shapes or devices do not fit.
        RuntimeError: In backward, if it is run with ``create_graph=True``.

    Example:
        >>> x, weight = torch.randn(100, 16), torch.randn(4, 16, requires_grad=True)
        >>> out = exact_linear(x, weight, config=ExactConfig(kept_frac=0.25, bits=2))
        >>> torch.allclose(out, x @ weight.T, atol=1e-5)
        True
        >>> out.sum().backward()
        >>> weight.grad.shape
        torch.Size([4, 16])

    References:
        Z. Liu et al., *EXACT: Scalable Graph Neural Networks Training via Extreme Activation Compression*, ICLR 2022.
    """
    if not isinstance(config, ExactConfig):
        raise TypeError(f"'config' must be an ExactConfig (got {type(config).__name__}). Write ExactConfig(0.125, 2).")
    check_floating("x", x)
    x, weight, bias = as_autocast(x, weight, bias, like=x)  # type: ignore[assignment]
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

    rows = x.reshape(-1, x.shape[-1])
    out, _ = torch.ops.rmm_gnn.exact_baseline_linear(rows, weight, bias, seed, config.kept_frac, config.bits)
    return out.reshape(*x.shape[:-1], weight.shape[0])


@torch.library.custom_op("rmm_gnn::exact_baseline_linear", mutates_args=(), tags=_SEEDED)
def linear_op(
    x: Tensor,  # [B, D]
    weight: Tensor,  # [M, D]
    bias: Tensor | None,  # [M]
    seed: Tensor,
    kept_frac: float,
    bits: int | None,
) -> tuple[Tensor, list[Tensor]]:
    """X W^T + b, and the seed and what else is kept of X."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, weight, bias), [seed.clone(), *keep_input(x, ExactConfig(kept_frac, bits), seed)]


@linear_op.register_fake
def _(
    x: Tensor, weight: Tensor, bias: Tensor | None, seed: Tensor, kept_frac: float, bits: int | None
) -> tuple[Tensor, list[Tensor]]:
    kept = kept_like(x, ExactConfig(kept_frac, bits))
    return x.new_empty(x.shape[0], weight.shape[0]), [torch.empty_like(seed), *kept]


@torch.library.custom_op("rmm_gnn::exact_baseline_weight_grad", mutates_args=(), tags=_SEEDED)
def weight_grad_op(
    grad_output: Tensor,  # [B, M]
    kept: list[Tensor],
    seed: Tensor,
    num_features: int,
    kept_frac: float,
    bits: int | None,
) -> Tensor:  # [M, D]
    """The estimated weight gradient."""
    with torch.autocast(grad_output.device.type, enabled=False):
        return weight_grad(grad_output, list(kept), ExactConfig(kept_frac, bits), seed, num_features)


@weight_grad_op.register_fake
def _(
    grad_output: Tensor, kept: list[Tensor], seed: Tensor, num_features: int, kept_frac: float, bits: int | None
) -> Tensor:
    return grad_output.new_empty(grad_output.shape[1], num_features)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    x, weight, _, _, *ctx.fields = inputs
    ctx.set_materialize_grads(False)
    ctx.num_features = x.shape[1]
    kept = output[1] if ctx.needs_input_grad[1] else []
    # The weight is kept only for the gradient of x.
    ctx.save_for_backward(weight if ctx.needs_input_grad[0] else None, *kept)


def _backward(ctx: Any, grad_output: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward("exact_linear")
    if grad_output is None:
        return (None,) * 6
    weight, *kept = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_weight = None
    if needs_weight:
        seed, *payload = kept
        grad_weight = torch.ops.rmm_gnn.exact_baseline_weight_grad(
            grad_output, payload, seed, ctx.num_features, *ctx.fields
        )
    grad_x = grad_output @ weight if needs_x else None
    grad_bias = grad_output.sum(0) if needs_bias else None
    return grad_x, grad_weight, grad_bias, None, None, None


linear_op.register_autograd(_backward, setup_context=_setup_context)
