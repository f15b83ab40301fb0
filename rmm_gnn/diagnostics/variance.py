r"""How noisy a weight gradient is: from the choice of samples (SGD), and from what the sketch adds (RMM).

X [B, N] is a linear layer's flattened input, Y [B, M] the gradient of its output, and

.. math::
    a = |X|^2 |Y|^2, \qquad c = |X^T Y|^2, \qquad d = \sum_i |x_i|^2 |y_i|^2 .

Everything here costs one pass over X and Y, O(B N M) operations as the gradient itself, and tiles of 16 MiB besides.
Equation numbers are those of Bershatsky et al., *Memory-Efficient Backpropagation through Large Linear Layers*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rmm_gnn._validation import check_matrix, check_positive_int, check_row_norms, check_seed
from rmm_gnn.anchor import Anchor, code_noise, fit_anchor, residual
from rmm_gnn.codecs import CAST_DTYPES, Codec, get_codec
from rmm_gnn.config import RMMConfig
from rmm_gnn.control_variates import column_means
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.sketches import Draw
from rmm_gnn.sketches.moments import moments, squared_norms, tiles


class NoiseParts(NamedTuple):
    """What the variance of an estimated weight gradient is made of, float64 scalars.

    Attributes:
        sketch: From S, in closed form.
        rounding: From the codec's random rounding of the sketch, on average over S, and from that of an anchor.
    """

    sketch: Tensor
    rounding: Tensor


def sgd_variance(x: Tensor, grad_output: Tensor) -> Tensor:  # [B, N], [B, M]
    r"""Return the variance that choosing the B samples brings into the weight gradient (9).

    .. math::
        D^2_{SGD} = \frac{B}{B-1} \sum_i |x_i|^2 |y_i|^2 - \frac{|X^T Y|^2}{B-1} = \frac{B d - c}{B - 1}

    Args:
        x: Input of the layer.
        grad_output: Gradient of its output.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If an argument is not a dense real floating-point tensor.
        ValueError: If an argument is not a matrix, the numbers of rows differ, or there are fewer than two.
    """
    num_rows = check_pair(x, grad_output, at_least=2)
    m = moments(x, grad_output)
    return (num_rows * m.d - m.c) / (num_rows - 1)


def rmm_variance(
    x: Tensor,  # [B, N]
    grad_output: Tensor,  # [B, M]
    config: RMMConfig,
    *,
    seed: int | Tensor = 0,
    num_draws: int = 1,
    row_norms: Tensor | None = None,  # [B]
    anchor: Tensor | None = None,  # [B, N]
) -> Tensor:
    r"""Return :math:`E|\hat G - X^T Y|_F^2`, the variance that sketch and codec bring into the weight gradient.

    The share of S is the family's closed form, of X less its column means with ``config.center``.  The share of a
    stochastic codec, given S, is :math:`\sum_r |\tilde y_r|^2 \sum_n \mathrm{Var}[\tilde x_{rn}]` over the rows of
    S^T X and S^T Y; its mean over S has no closed form and is averaged over ``num_draws`` draws, each of which is right
    on average (one draw is off by a few per cent at a hundred sketch rows, less with more).  Both add, since rounding
    is unbiased given S.  The cast codecs round to nearest, which is no variance: for them this is the share of S.

    For an anchored layer, ``functional.anchored_linear``, X is the residual of its fit.  The random rounding of a code
    of x_0 adds :math:`\sum_i |y_i|^2 \sum_j \mathrm{Var}[x_{0ij}] |A_j|^2`.  For this, one more B x N matrix is formed.

    *Erratum.*  The paper's (11) is :func:`paper_rmm_variance`; the right one for its Gaussian S is (a + c)/k.

    Where ``rmm_linear`` was given a ``row_mask``, its noise is that of the rows which the mask marks:
    ``rmm_variance(x[row_mask], grad_output[row_mask], config)``, likewise for the other functions here.

    A family that reads the shape of x has to be told: ``config.for_shape((batch, sequence))``.

    Args:
        x: Input of the layer.
        grad_output: Gradient of its output.
        config: How x is kept.
        seed: Where the draws for the codec's share come from; without a stochastic codec it is not used.
        num_draws: Number of these draws.
        row_norms: What ``rmm_linear`` was given for ``importance_sampling``; without them, the variance is that of its
            first step.
        anchor: The x_0 that the layer is anchored at; None if it is not.  ``config.anchor`` is not read, since only the
            layer knows.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If shapes do not fit, the sketch family has no closed form or cannot be anchored, or makes no use of
            ``row_norms``.

    Example:
        >>> x, grad_output = torch.ones(100, 3), torch.ones(100, 2)
        >>> float(rmm_variance(x, grad_output, RMMConfig(rate=0.1)))  # centring leaves nothing to sketch
        0.0
    """
    parts = noise_parts(x, grad_output, config, seed=seed, num_draws=num_draws, row_norms=row_norms, anchor=anchor)
    return parts.sketch + parts.rounding


def noise_parts(
    x: Tensor,  # [B, N]
    grad_output: Tensor,  # [B, M]
    config: RMMConfig,
    *,
    seed: int | Tensor = 0,
    num_draws: int = 1,
    row_norms: Tensor | None = None,  # [B]
    anchor: Tensor | None = None,  # [B, N]
) -> NoiseParts:
    """Return the two summands of :func:`rmm_variance`; arguments, errors and cost are the same."""
    num_rows = check_pair(x, grad_output, at_least=1)
    check_positive_int("num_draws", num_draws)
    first = check_seed(seed, x.device)
    if row_norms is not None:
        check_row_norms(row_norms, x, config.family.name, reads=config.family.reads_row_norms)
    if anchor is not None:
        fitted = anchor_of(x, anchor, config)
        x, mean = residual(x, fitted), None
    else:
        mean = column_means(x, config.workspace_bytes) if config.center else None
    sketch = config.family.variance(x, grad_output, config.sketch_size(num_rows), mean=mean, row_norms=row_norms)
    if sketch is None:
        raise ValueError(
            f"'config' must have a sketch whose variance is known (got {config.family.name!r}). "
            "Give its class a 'variance', or choose another family."
        )
    rounding = torch.zeros_like(sketch)
    if get_codec(config.codec).rounds_at_random:
        for draw in range(num_draws):
            rounding += rounding_variance(x, grad_output, config, first + draw, mean, row_norms=row_norms) / num_draws
    if anchor is not None and get_codec(config.x0_codec).rounds_at_random:
        norms = torch.cat([squared_norms(tile) for _, tile in tiles(grad_output)])
        rounding += code_noise(anchor, fitted.coefficients, str(config.x0_codec)).dot(norms)
    return NoiseParts(sketch, rounding)


def anchor_of(x: Tensor, x_0: Tensor, config: RMMConfig) -> Anchor:
    """Return the fit that an anchored layer makes of x [B, N] on x_0 [B, N], which bf16 and fp16 round to nearest."""
    config.check_anchor()
    check_matrix("anchor", x_0)
    if x_0.shape != x.shape or accumulation_dtype(x_0.dtype) != accumulation_dtype(x.dtype):
        raise ValueError(
            f"'anchor' must have the shape and precision of 'x' (got {tuple(x_0.shape)} of {x_0.dtype}). "
            "Pass the x_0 of the layer."
        )
    rounded = x_0.to(CAST_DTYPES.get(str(config.x0_codec)) or x_0.dtype)
    return fit_anchor(x, rounded, center=config.center, workspace_bytes=config.workspace_bytes)


def rounding_variance(
    x: Tensor,
    grad_output: Tensor,
    config: RMMConfig,
    seed: Tensor,
    mean: Tensor | None,
    max_rows: int | None = None,
    row_norms: Tensor | None = None,
) -> Tensor:
    """Return the variance that storing S^T X in the codec adds, given the S of ``seed``; see `rounding_variances`."""
    return rounding_variances(x, grad_output, config, [config.codec], seed, mean, max_rows, row_norms)[0]


def rounding_variances(
    x: Tensor,
    grad_output: Tensor,
    config: RMMConfig,
    codecs: Sequence[str | Codec],
    seed: Tensor,
    mean: Tensor | None,
    max_rows: int | None = None,
    row_norms: Tensor | None = None,
) -> list[Tensor]:
    """Return the variance that storing S^T X adds in each of ``codecs``, given the S of ``seed``.

    Args:
        x: Input of the layer [B, N].
        grad_output: Gradient of its output [B, M].
        config: How x is sketched.
        codecs: How the sketch is stored.
        seed: Of S.
        mean: What is subtracted from every row of x; None without centring.
        max_rows: Read so many of the sketch's rows at most, and scale up: the rows are exchangeable.
        row_norms: For a family that draws rows by them [B].
    """
    family, num_rows = config.family, x.shape[0]
    size = config.sketch_size(num_rows)
    state = family.prepare(x, mean, seed, size, config.workspace_bytes, row_norms)
    draw = Draw(seed, size, state, config.workspace_bytes // 2, config.backend)
    totals = [x.new_zeros((), dtype=torch.float64) for _ in codecs]
    read = size if max_rows is None else min(size, max_rows)
    height = max(1, config.workspace_bytes // 8 // (4 * (x.shape[1] + grad_output.shape[1])))
    for start in range(0, read, height):
        stop = min(start + height, read)
        block = family.sketch_rows(x, draw, start, stop)
        if mean is not None:
            # Of the rows that are read alone: the whole sketch of a dense family would take as long as training.
            ones = torch.ones_like(mean[:1]).expand(num_rows, 1)
            block.addr_(family.sketch_rows(ones, draw, start, stop).squeeze(1), mean, alpha=-1.0)
        weights = squared_norms(family.sketch_rows(grad_output, draw, start, stop))
        for total, codec in zip(totals, codecs, strict=True):
            total += get_codec(codec).variance(block).sum(1, dtype=torch.float64).dot(weights)
    return [total * (size / read) for total in totals]


def variance_ratio(
    x: Tensor,
    grad_output: Tensor,
    config: RMMConfig,
    *,
    seed: int | Tensor = 0,
    num_draws: int = 1,
    row_norms: Tensor | None = None,
    anchor: Tensor | None = None,
) -> Tensor:
    """Return :func:`rmm_variance` over :func:`sgd_variance`: the noise that is added over the noise of the data.

    Arguments and errors are theirs.  Inf where the data bring none.
    """
    added = rmm_variance(x, grad_output, config, seed=seed, num_draws=num_draws, row_norms=row_norms, anchor=anchor)
    return added / sgd_variance(x, grad_output)


def alignment(x: Tensor, grad_output: Tensor) -> Tensor:  # [B, N], [B, M]
    r"""Return :math:`\alpha = |X^T Y|^2 / (|X|^2 |Y|^2) = c/a` (13): 1 where all rows agree, 0 where the gradient is 0.

    Args:
        x: Input of the layer.
        grad_output: Gradient of its output.

    Returns:
        A float64 scalar in [0, 1]; nan where x or grad_output is 0.

    Raises:
        TypeError: If an argument is not a dense real floating-point tensor.
        ValueError: If an argument is not a matrix, or the numbers of rows differ.
    """
    check_pair(x, grad_output, at_least=1)
    m = moments(x, grad_output)
    return m.c / m.a


def check_pair(x: Tensor, grad_output: Tensor, at_least: int) -> int:
    """Check that these are matrices [B, N] and [B, M] of ``at_least`` rows, and return B."""
    check_matrix("x", x)
    check_matrix("grad_output", grad_output)
    if x.shape[0] != grad_output.shape[0]:
        raise ValueError(
            f"'grad_output' must have the rows of 'x', {x.shape[0]} (got {grad_output.shape[0]}). Flatten both alike."
        )
    if x.shape[0] < at_least:
        raise ValueError(f"'x' must have at least {at_least} rows (got {x.shape[0]}). One sample has no variance.")
    return x.shape[0]
