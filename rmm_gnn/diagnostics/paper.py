"""The paper's formulas for the noise of a sketch, for comparison: neither holds.

Equation numbers are those of Bershatsky et al., *Memory-Efficient Backpropagation through Large Linear Layers*; a, c
and d are as in ``diagnostics.variance``.
"""

from __future__ import annotations

from torch import Tensor

from rmm_gnn._validation import check_positive_int
from rmm_gnn.diagnostics.variance import check_pair
from rmm_gnn.sketches.moments import moments


def paper_rmm_variance(x: Tensor, grad_output: Tensor, sketch_size: int) -> Tensor:  # [B, N], [B, M]
    r"""Return the paper's formula for the variance of a Gaussian sketch (11), for comparison: it is wrong.

    .. math::
        \frac{|X|^2 |Y|^2 - |X^T Y|^2}{k} = \frac{a - c}{k}, \qquad \text{right:} \quad \frac{a + c}{k}

    Its proof drops the fourth moment in (36).  For rows that all agree (a = c) it gives 0 for any k, although one
    Gaussian number squared, the estimate of 1 at k = 1, has the variance 2.

    Args:
        x: Input of the layer.
        grad_output: Gradient of its output.
        sketch_size: k.

    Returns:
        A float64 scalar.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is not a matrix, the numbers of rows differ, or ``sketch_size`` is below 1.
    """
    check_pair(x, grad_output, at_least=1)
    check_positive_int("sketch_size", sketch_size)
    m = moments(x, grad_output)
    return (m.a - m.c) / sketch_size


def paper_ratio_bound(x: Tensor, grad_output: Tensor, sketch_size: int) -> Tensor:  # [B, N], [B, M]
    r"""Return the paper's upper bound on :math:`D^2_{RMM} / D^2_{SGD}` (12), for comparison: it does not hold.

    .. math::
        \frac{D^2_{RMM}}{D^2_{SGD}} \le \frac{B - 1}{k} \cdot \frac{\alpha + 1}{\alpha}

    The last step of the proof (A.3) loses a term ``2 |X|^2 |Y|^2``.  Counterexample: x_i = t_i u and y_i = v / t_i.
    Every sample then has the same gradient, so D_SGD is 0, the sketch still adds noise, and the right side is finite.

    Args:
        x: Input of the layer.
        grad_output: Gradient of its output.
        sketch_size: k.

    Returns:
        A float64 scalar; inf where the gradient is 0.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is not a matrix, the numbers of rows differ, or ``sketch_size`` is below 1.

    Example:
        >>> import torch
        >>> from rmm_gnn import RMMConfig
        >>> from rmm_gnn.diagnostics import rmm_variance, sgd_variance
        >>> t = torch.tensor([1.0, 2.0, 4.0]).unsqueeze(1)
        >>> x, grad_output = t * torch.tensor([1.0, 0.0]), torch.tensor([3.0]) / t
        >>> float(sgd_variance(x, grad_output))
        0.0
        >>> bool(rmm_variance(x, grad_output, RMMConfig(size=1, sketch="gaussian", center=False)) > 0)
        True
        >>> bool(paper_ratio_bound(x, grad_output, 1).isfinite())
        True
    """
    num_rows = check_pair(x, grad_output, at_least=1)
    check_positive_int("sketch_size", sketch_size)
    m = moments(x, grad_output)
    return (num_rows - 1) / sketch_size * (m.c + m.a) / m.c
