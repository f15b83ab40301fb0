"""Products that keep a sketch of their input."""

from __future__ import annotations

from operator import index

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.addmm
import rmm_gnn.autograd.rmm_linear  # noqa: F401  (registers the operators)
from rmm_gnn._validation import (
    check_companions,
    check_device,
    check_floating,
    check_linear_shapes,
    check_matrix,
    check_number,
    check_row_mask,
    check_row_norms,
    check_seed,
)
from rmm_gnn.config import RMMConfig
from rmm_gnn.functional._calling import (
    as_autocast,
    as_rows,
    overridable,
    refuse_transforms,
    shaped,
)
from rmm_gnn.row_masks import UNKNOWN, count_rows, masks_are_checked
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sharing import KeptOnce, identity_of


@overridable
def rmm_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    bias: Tensor | None = None,  # [M]
    *,
    config: RMMConfig,
    seed: Tensor | int | None = None,
    shared: KeptOnce | None = None,
    row_norms: Tensor | None = None,  # [B]
    row_mask: Tensor | None = None,  # [*]
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

    *Padding.*  Rows whose output has no gradient, as padding has in a transformer with an attention mask whose loss
    does not read it, add nothing to the weight gradient.  Where a ``row_mask`` marks the others, B' of them, only these
    are sketched: k = ``config.sketch_size(B')``, ``config.saved_bytes(B', N)`` bytes are kept, and the mask itself, one
    byte a row, as it is given: once for all layers that are given the same one.  The other rows are not read for the
    weight gradient; output and gradients of x and bias stay exact over all rows.  What is estimated is the gradient of
    the marked rows alone, so the gradient of the output has to be zero in the others, or the estimate is biased:
    ``diagnostics.check_row_masks`` checks that.  A mask that marks every row is no mask; with one that marks none,
    nothing is kept and the weight gradient is zero.  Besides the workspace, forward and backward need 24 bytes a row of
    x for the numbers of the rows.  B' is read back from a GPU, once for a mask that many layers share.  Under
    ``torch.compile(fullgraph=True)`` k is one of the graph's sizes; without ``fullgraph`` the graph breaks, unless
    ``torch._dynamo.config.capture_dynamic_output_shape_ops`` is set.  Traced code reads B' back in every forward and
    backward of a layer, and treats masks of all rows or none as any other.

    Args:
        x: Input, float32, float64, bfloat16 or float16.
        weight: Weight of the same type.
        bias: Bias of the same type, or None.
        config: What to keep.
        seed: Decides S: an int64 scalar tensor on the device of x from ``draw_seed``, or an int.  If None, drawn from
            PyTorch's default generator whenever ``weight`` requires a gradient, whether or not grad mode is on.  The
            same seed gives the same S; one that stays fixed over training turns the noise into a persistent error.
        shared: Where to look for a sketch of this x under the same config, kept for a backward pass to come, before
            making one.  Layers that share a sketch have correlated noise; each estimate is unbiased still.  Not used
            where there are ``row_norms``.
        row_norms: For a family that draws rows by them, ``"importance_sampling"``: the norms that the B rows of the
            gradient of this output had a step ago, of any real floating-point type.  Layers keep them by themselves.
        row_mask: bool, True for the rows to sketch, of the leading shape of x: an attention mask, compared with 1.  It
            must not change in place before backward.

    Returns:
        The exact output.

    Raises:
        TypeError: If a tensor is not a dense floating-point one, types differ, ``row_mask`` is not one of bools, or
            ``config`` is not an ``RMMConfig``.
        ValueError: If shapes or devices do not fit, or the family makes no use of ``row_norms``.
        RuntimeError: Under transforms of ``torch.func`` or forward-mode differentiation; in backward, if it is run with
            ``create_graph=True``, or a check of ``row_mask`` fails.

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
    check_floating("weight", weight)
    check_companions(x, bias=bias)
    source = x
    x, weight, bias = as_autocast(x, weight, bias, like=x)  # type: ignore[assignment]
    check_linear_shapes(x, weight, bias)
    if row_norms is not None:
        check_row_norms(row_norms, x, config.family.name, reads=config.family.reads_row_norms)
    if row_mask is not None:
        check_row_mask(row_mask, x, config.family.name, on_a_grid=config.family.reads_shape)

    if seed is not None:
        seed = check_seed(seed, x.device)
    elif weight.requires_grad:
        # Also with grad mode off: reentrant checkpointing runs its first pass so, and must advance the generator.
        seed = draw_seed(x)
    if seed is None or not weight.requires_grad or x.numel() == 0:
        return F.linear(x, weight, bias)
    refuse_transforms("rmm_linear", x, weight, bias)
    if not torch.is_grad_enabled():
        return torch.ops.rmm_gnn.exact_linear(x, weight, bias, seed)

    rows, spec = as_rows(x), config.spec
    if config.family.reads_shape:
        # Lengths that torch.compile does not know become constants of the graph.
        spec = _spec_for(spec, [index(length) for length in x.shape[:-1]])
    num_rows, checked, identity = 0, False, None
    if row_mask is not None:
        num_rows, checked = UNKNOWN, masks_are_checked()
        if not torch.compiler.is_compiling():
            num_rows = count_rows(row_mask)
            if num_rows == 0:
                unmarked = row_mask if checked else None
                out = torch.ops.rmm_gnn.linear_of_kept(rows, weight, bias, [], spec, unmarked, 0, checked)
                return shaped(out, x)
            if num_rows == row_mask.numel():
                row_mask, num_rows = None, 0
            else:
                identity = identity_of(row_mask)
    # Norms are those of one weight's output: rows drawn by them are the wrong ones for another.
    if shared is None or row_norms is not None:
        out = torch.ops.rmm_gnn.linear(rows, weight, bias, seed, spec, row_norms, row_mask, num_rows, checked)[0]
        return shaped(out, x)
    kept = shared.get_or_make(
        source,
        (x.dtype, spec, identity),
        lambda: torch.ops.rmm_gnn.compress(rows.detach(), seed, spec, row_mask, num_rows),
    )
    return shaped(torch.ops.rmm_gnn.linear_of_kept(rows, weight, bias, kept, spec, row_mask, num_rows, checked), x)


@overridable
def addmm(
    input: Tensor,  # broadcasts to [B, M]
    mat1: Tensor,  # [B, N]
    mat2: Tensor,  # [N, M]
    *,
    beta: float = 1,
    alpha: float = 1,
    config: RMMConfig,
    seed: Tensor | int | None = None,
) -> Tensor:  # [B, M]
    r"""``torch.addmm`` that keeps a sketch of ``mat1`` for the gradient of ``mat2``; see ``rmm_linear``.

    .. math::
        \beta \, input + \alpha \, X W, \qquad \partial W \approx \alpha \, (S^T X)^T (S^T Y)

    The output and the gradients of ``input`` and ``mat1`` are exact.  Where ``mat2`` needs no gradient this is
    ``torch.addmm``.

    Args:
        input: Added to the product, times ``beta``.
        mat1: X.
        mat2: W.
        beta: Factor of ``input``.
        alpha: Factor of the product.
        config: What to keep.
        seed: Decides S; if None, drawn whenever ``mat2`` requires a gradient, whether or not grad mode is on.

    Returns:
        The exact output.

    Raises:
        TypeError: If a tensor is not a dense floating-point one, a factor not a number, or ``config`` is not an
            ``RMMConfig``.
        ValueError: If ``mat1`` does not have two dimensions, or devices differ.
        RuntimeError: As torch raises it; under transforms of ``torch.func`` and forward-mode differentiation; in
            backward, if it is run with ``create_graph=True``.
    """
    if not isinstance(config, RMMConfig):
        raise TypeError(f"'config' must be an RMMConfig (got {type(config).__name__}). Write RMMConfig(rate=0.1).")
    check_matrix("mat1", mat1)
    for name, tensor in (("input", input), ("mat2", mat2)):
        check_device(name, check_floating(name, tensor), "mat1", mat1)
    check_number("beta", beta)
    check_number("alpha", alpha)
    if seed is not None:
        seed = check_seed(seed, mat1.device)
    elif mat2.requires_grad:
        seed = draw_seed(mat1)
    if seed is None or not mat2.requires_grad or not torch.is_grad_enabled() or mat1.numel() == 0:
        return torch.addmm(input, mat1, mat2, beta=beta, alpha=alpha)
    refuse_transforms("addmm", input, mat1, mat2)
    input, mat1, mat2 = as_autocast(input, mat1, mat2, like=mat1)  # type: ignore[assignment]
    return torch.ops.rmm_gnn.addmm(input, mat1, mat2, float(beta), float(alpha), seed, config.spec)[0]


@torch.compiler.assume_constant_result
def _spec_for(spec: str, leading_shape: list[int]) -> str:
    """Return the spec of a config for an x of this shape; in traced code a constant, as its sizes then are."""
    return RMMConfig.from_spec(spec).for_shape(leading_shape).spec
