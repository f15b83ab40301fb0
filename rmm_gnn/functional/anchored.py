"""The products of a GCN2 convolution with its sketch anchored at x_0."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.anchored_linear  # noqa: F401  (registers the operators)
from rmm_gnn._validation import check_anchor, check_floating, check_linear_shapes, check_seed
from rmm_gnn.config import RMMConfig
from rmm_gnn.functional._calling import as_autocast, autocast_dtype, overridable, refuse_transforms, rounding_seed
from rmm_gnn.functional.shared_input import keeps_whole, shared_code, shared_input_linear
from rmm_gnn.seeding import draw_seed


@overridable
def anchored_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    x_0: Tensor,  # [*, N]
    weight_0: Tensor | None = None,  # [M, N]
    *,
    scale: float = 1.0,
    config: RMMConfig,
    seed: Tensor | int | None = None,
) -> Tensor:  # [*, M]
    r"""``rmm_linear`` of x that sketches x less its linear fit on x_0, plus the product of x_0, which is kept anyway.

    .. math::
        \hat X = X W^T + s X_0 W_0^T, \qquad
        \partial W \approx (S^T Y)^T (S^T (X - X_0 A - 1 m^T)) + (Y^T X_0) A + (Y^T 1) m^T, \qquad
        \partial W_0 = s Y^T X_0

    with A, m a least-squares fit of X by X_0 and 1 (``anchor.fit_anchor``) that does not use S: the estimate is
    unbiased for whatever A, and as noisy as the sketch of the residual.  :math:`Y^T X_0` is formed once for both
    weights.  All else is exact, as in ``rmm_linear`` and ``shared_input_linear``.

    Kept are ``config.saved_bytes`` of x, A (N x N, float32 or float64), and x_0: itself, or its code in
    ``config.x0_codec``, once for all layers that read the same tensor.  An int code of x_0 leaves both estimates
    unbiased, since its rounding depends on none of X, A and Y.  With bf16 and fp16 X is fitted on x_0 as it is read
    back, so that the estimate of W is unbiased there too; W_0's has the bias of the rounding.

    Besides the workspace, there are a few N x N matrices, and in the product with x_0 tiles of 4 MiB.  The sketch is
    applied to x_0 as well, so that a family's own exceptions count twice.

    Args:
        x: Input.
        weight: Its weight, of the same type.
        x_0: What x is fitted on, of the shape of x; kept, also without ``weight_0``.
        weight_0: Weight of the second product, or None to leave it out.
        scale: Factor of the second product.
        config: What to keep; ``config.anchor`` is not read.
        seed: Decides S; if None, drawn whenever ``weight`` requires a gradient, whether or not grad mode is on.

    Returns:
        The exact output.

    Raises:
        TypeError: If a tensor is not a dense floating-point one, types differ, or ``config`` is not an ``RMMConfig``.
        ValueError: If shapes or devices do not fit, or the sketch is one that depends on the data.
        RuntimeError: Under transforms of ``torch.func`` or forward-mode differentiation; in backward, if it is run with
            ``create_graph=True``.

    Example:
        >>> x_0, weight = torch.randn(100, 8), torch.randn(4, 8, requires_grad=True)
        >>> x = x_0 @ torch.randn(8, 8)  # nothing is left to sketch
        >>> anchored_linear(x, weight, x_0, config=RMMConfig(rate=0.1)).sum().backward()
        >>> torch.allclose(weight.grad, x.sum(0).expand(4, 8), rtol=1e-3, atol=1e-2)
        True
    """
    if not isinstance(config, RMMConfig):
        raise TypeError(f"'config' must be an RMMConfig (got {type(config).__name__}). Write RMMConfig(rate=0.1).")
    config.check_anchor()
    check_floating("x", x)
    check_floating("weight", weight)
    source = x
    x, weight = as_autocast(x, weight, like=x)  # type: ignore[assignment]
    check_linear_shapes(x, weight, None)
    check_anchor(source, x_0, weight, weight_0, any_type=autocast_dtype(source) is not None)

    if seed is not None:
        seed = check_seed(seed, x.device)
    elif weight.requires_grad:
        seed = draw_seed(x)
    codec = str(config.x0_codec)
    if weight.requires_grad:
        refuse_transforms("anchored_linear", x, weight, x_0, weight_0)
    if seed is None or not (weight.requires_grad and torch.is_grad_enabled()) or x.numel() == 0:
        if seed is not None and weight.requires_grad and not torch.is_grad_enabled():
            out = torch.ops.rmm_gnn.exact_linear(x, weight, None, seed)
        else:
            out = F.linear(x, weight)
        if weight_0 is not None:
            return out + shared_input_linear(x_0, weight_0, scale=scale, codec=codec)
        if seed is not None:
            rounding_seed(x_0, codec, None)  # as with grad mode on: what is drawn later must come out the same
        return out

    drawn = rounding_seed(x_0, codec, None)
    payload = [] if keeps_whole(x_0, codec) else shared_code(x_0, codec, drawn)
    rows, rows_0 = (tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1]) for tensor in (x, x_0))
    out, _ = torch.ops.rmm_gnn.anchored_linear(
        rows, weight, rows_0, weight_0, payload, codec, float(scale), seed, config.spec
    )
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], out.shape[-1])
