"""Normalisation that keeps its normalised input, or a sketch of it, in a codec."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.batch_norm
import rmm_gnn.autograd.layer_norm
import rmm_gnn.autograd.rms_norm  # noqa: F401  (registers the operators)
from rmm_gnn._validation import (
    check_choice,
    check_companions,
    check_floating,
    check_lengths,
    check_number,
    check_rate,
)
from rmm_gnn.codecs import Codec
from rmm_gnn.functional._calling import needs_grad, overridable, refuse_transforms, rounding_seed, spec_of
from rmm_gnn.kernels import BACKENDS
from rmm_gnn.kernels.reference import accumulation_dtype


@overridable
def batch_norm(
    x: Tensor,  # [N, C, *]
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    codec: str | Codec = "int2",
    rate: float = 1.0,
    seed: Tensor | int | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""``torch.nn.functional.batch_norm`` that keeps the normalised input, or a sketch of its rows, in a codec.

    Output, statistics, running statistics and the gradient of ``bias`` are exact; with the int codecs the gradient of
    ``weight`` is unbiased, and the mean of the gradient of x differs from the exact one by

    .. math::
        E[\partial x_{ij}] - \partial x^{exact}_{ij} = -\frac{\gamma_j}{\sigma_j} \, \frac{g_{ij} v_{ij}}{M},
        \qquad v_{ij} \le s_i^2 / 4

    with M the entries of a channel, v the codec's variance and :math:`s_i` its step: one part in M.  With
    ``training=False`` this is torch's function: nothing is drawn, and what torch keeps is kept.

    *Fewer rows.*  A row is one of the N samples with all its channels and positions.  With ``rate`` below 1 the codec
    stores a balanced CountSketch of k = round(rate N) rows of the normalised input, k in [1, N], and backward reads
    :math:`\tilde x = S (S^T \hat x + e)`, e the rounding.  The gradient of ``bias`` stays exact and that of ``weight``
    unbiased; that of x [N, C] is off by

    .. math::
        E[\partial x_{ij}] - \partial x^{exact}_{ij} = -\frac{\gamma_j}{\sigma_j} \left[ p \left(
            g_{ij} \frac{|\hat x_j|^2}{N} + \hat x_{ij} c_j - \frac{2 g_{ij} \hat x_{ij}^2}{N} \right)
            + \frac1N E[S (S^T g \circ V)]_{ij} \right], \qquad c_j = \frac1N \sum_i g_{ij} \hat x_{ij}

    with V the codec's variance of the sketch's entries and p the probability that two rows share a bucket,
    (N - k)/((N - 1) k) for equal ones: one part in k.  ``rmm_gnn.autograd.sketched_norm`` derives it, positions too.
    The variance of an entry read back is about N/k - 1 and that of the rounding of the sketch, whose rows are
    :math:`\sqrt{N/k}` times as large.  Kept are k rows of the code, 1/sigma, and a seed of 8 bytes.

    Besides what is kept and returned, tiles of 1 MiB are allocated; with ``rate`` below 1, 16 MiB, and a copy of an x
    or a gradient of the output that has more than two dimensions and is not contiguous.

    Args:
        x: At least two dimensions, channels second.
        running_mean: Updated in place in training, [C], or None.
        running_var: Updated in place in training, [C], or None.
        weight: gamma [C], or None.
        bias: beta [C], or None.
        training: Use and keep the batch's own statistics.
        momentum: Weight of the batch in the running statistics.
        eps: Added to the variance.
        codec: How the normalised input, or its sketch, is kept.
        rate: Share of the N rows to keep as a sketch, in (0, 1]; 1 keeps the rows themselves.
        seed: Decides the rounding and the sketch; drawn afresh at every call if None.
        backend: What normalises and codes, or sketches, as in ``RMMConfig``.

    Returns:
        The output, of the shape of x.

    Raises:
        TypeError: If a tensor is not one, or not a dense floating-point one (x: where a gradient is needed), or
            ``momentum``, ``eps`` or ``rate`` is no number.
        ValueError: If devices differ, ``codec`` or ``backend`` is unknown, ``backend`` does not take x, ``rate`` is out
            of range, or as torch raises it.
        ImportError: If what ``backend`` needs is not installed.
        RuntimeError: As torch raises it; under transforms of ``torch.func`` and forward-mode differentiation; in
            backward, if it is run with ``create_graph=True``.
    """
    check_companions(x, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    check_choice("backend", backend, BACKENDS)
    check_number("momentum", momentum)
    check_number("eps", eps)
    codec, rate = spec_of(codec), check_rate("rate", rate)
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    needed = needs_grad(x, weight, bias)
    if needed:
        check_floating("x", x)
    seed = rounding_seed(x, codec, seed, sketched=rate < 1.0)
    # torch has the words for what it refuses: one value a channel, an eps of 0, sizes that do not fit.  Its kernel,
    # which the operator calls, checks no sizes and would read and write beyond the end.
    refused = x.dim() < 2 or x.numel() <= x.shape[1] or eps <= 0 or (running_mean is None) != (running_var is None)
    for tensor in (running_mean, running_var, weight, bias):
        refused = refused or (tensor is not None and tensor.numel() != x.shape[1])
    if not needed or refused:
        return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    refuse_transforms("batch_norm", x, running_mean, running_var, weight, bias)
    keep_input = needs_grad(x, weight)
    out, running, _ = torch.ops.rmm_gnn.batch_norm(
        x,
        weight,
        bias,
        running_mean,
        running_var,
        momentum,
        eps,
        codec,
        keep_input,
        seed,
        rate,
        backend,
    )
    if running_mean is not None and running_var is not None:
        # Detached: a buffer that joined this step's graph would carry it into the next one.
        running_mean.copy_(running[0].detach())
        running_var.copy_(running[1].detach())
    return out


@overridable
def layer_norm(
    x: Tensor,  # [*, normalized_shape]
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    codec: str | Codec = "int2",
    seed: Tensor | int | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""``torch.nn.functional.layer_norm`` that keeps the normalised input in a codec.

    Output, statistics and the gradient of ``bias`` are exact; with the int codecs the gradient of ``weight`` is
    unbiased, and the mean of the gradient of x differs from the exact one by

    .. math::
        E[\partial x_{ij}] - \partial x^{exact}_{ij} = -\frac{1}{\sigma_i} \, \frac{\gamma_j g_{ij} v_{ij}}{C},
        \qquad v_{ij} \le s_i^2 / 4

    with C the entries of a row, v the codec's variance and :math:`s_i` its step.  For normal rows of 64 this is about
    one part in a hundred of gamma g / sigma with INT2, one in two thousand with INT4.

    Args:
        x: Ends in the dimensions ``normalized_shape``.
        normalized_shape: The dimensions to normalise over.
        weight: gamma [normalized_shape], or None.
        bias: beta [normalized_shape], or None.
        eps: Added to the variance.
        codec: How the normalised input is kept.
        seed: Decides the rounding; drawn afresh at every call if None.
        backend: What codes, as in ``RMMConfig``.

    Returns:
        The output, of the shape of x.

    Raises:
        TypeError: If a tensor is not one, or not a dense floating-point one (x: where a gradient is needed), or an
            argument is of the wrong type.
        ValueError: If devices differ, ``codec`` or ``backend`` is unknown, or ``backend`` does not run on x's device.
        ImportError: If what ``backend`` needs is not installed.
        RuntimeError: As torch raises it; under transforms of ``torch.func`` and forward-mode differentiation; in
            backward, if it is run with ``create_graph=True``.
    """
    check_companions(x, weight=weight, bias=bias)
    check_choice("backend", backend, BACKENDS)
    check_number("eps", eps)
    codec, shape = spec_of(codec), check_lengths("normalized_shape", normalized_shape)
    needed = needs_grad(x, weight, bias)
    if needed:
        check_floating("x", x)
    seed = rounding_seed(x, codec, seed)
    if not needed or x.numel() == 0 or prod(shape) == 0:
        return F.layer_norm(x, shape, weight, bias, eps)
    refuse_transforms("layer_norm", x, weight, bias)
    keep_input = needs_grad(x, weight)
    return torch.ops.rmm_gnn.layer_norm(x, shape, weight, bias, eps, codec, keep_input, seed, backend)[0]


@overridable
def rms_norm(
    x: Tensor,  # [*, normalized_shape]
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    codec: str | Codec = "int2",
    seed: Tensor | int | None = None,
    backend: str = "auto",
) -> Tensor:
    r"""``torch.nn.functional.rms_norm`` that keeps the normalised input in a codec.

    The output is torch's, up to rounding where torch has a fused kernel; with the int codecs the gradient of ``weight``
    is unbiased, and the mean of the gradient of x differs from the exact one as in ``layer_norm``, by

    .. math::
        E[\partial x_{ij}] - \partial x^{exact}_{ij} = -\frac{1}{\sigma_i} \, \frac{\gamma_j g_{ij} v_{ij}}{C},
        \qquad v_{ij} \le s_i^2 / 4

    with C the entries of a row, :math:`\sigma_i` the root of its mean square and eps, v the codec's variance and
    :math:`s_i` its step.

    Args:
        x: Ends in the dimensions ``normalized_shape``.
        normalized_shape: The dimensions to normalise over.
        weight: gamma [normalized_shape], or None.
        eps: Added to the mean square; the resolution of the type that torch computes in if None.
        codec: How the normalised input is kept.
        seed: Decides the rounding; drawn afresh at every call if None.
        backend: What codes, as in ``RMMConfig``.

    Returns:
        The output, of the shape of x.

    Raises:
        TypeError: If a tensor is not one, or not a dense floating-point one (x: where a gradient is needed), or an
            argument is of the wrong type.
        ValueError: If devices differ, ``codec`` or ``backend`` is unknown, ``backend`` does not run on x's device, or
            as torch raises it.
        ImportError: If what ``backend`` needs is not installed.
        RuntimeError: As torch raises it; under transforms of ``torch.func`` and forward-mode differentiation; in
            backward, if it is run with ``create_graph=True``.
    """
    check_companions(x, weight=weight)
    check_choice("backend", backend, BACKENDS)
    if eps is not None:
        check_number("eps", eps)
    codec, shape = spec_of(codec), check_lengths("normalized_shape", normalized_shape)
    needed = needs_grad(x, weight)
    if needed:
        check_floating("x", x)
    seed = rounding_seed(x, codec, seed)
    # torch has the words for shapes that do not fit.
    refused = not shape or list(x.shape[-len(shape) :]) != shape or (weight is not None and list(weight.shape) != shape)
    if not needed or refused or x.numel() == 0:
        return F.rms_norm(x, shape, weight, eps)
    refuse_transforms("rms_norm", x, weight)
    eps = torch.finfo(accumulation_dtype(x.dtype)).eps if eps is None else eps
    return torch.ops.rmm_gnn.rms_norm(x, shape, weight, eps, codec, seed, backend)[0]
