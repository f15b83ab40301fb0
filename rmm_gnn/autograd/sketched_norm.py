r"""What batch normalisation keeps where it keeps fewer rows than it has: a sketch of its normalised input, in a codec.

With :math:`\hat x_j` [N, L] a channel of the normalised input (L positions a row, 1 for [N, C]), S [N, k] a balanced
CountSketch and e the rounding of the codec, backward reads

.. math::
    \tilde x_j = S (S^T \hat x_j + e), \qquad E[\tilde x_j] = \hat x_j

*Noise.*  Let :math:`p = \sum_b n_b (n_b - 1) / (N (N - 1))` be the probability that two rows share a bucket, n_b the
sizes of the buckets: (N - k)/((N - 1) k) for equal ones, 0 at k = N.  Entry i of :math:`S S^T \hat x` is
:math:`\hat x_i + s_i \sum_m s_m \hat x_m` over the other rows m of its bucket, with independent signs s.  A product of
two such sums has a mean only where the signs pair up:

.. math::
    \mathrm{Cov}(\tilde x_{iq}, \tilde x_{ir}) = p \sum_{m \ne i} \hat x_{mq} \hat x_{mr}, \qquad
    \mathrm{Cov}(\tilde x_{iq}, \tilde x_{mr}) = p \, \hat x_{mq} \hat x_{ir} \quad (m \ne i)

besides the rounding, so that an entry's variance is about N/k - 1, its columns being standardised.

*Bias.*  Backward multiplies two estimates, :math:`\tilde x_j` and
:math:`\tilde c_j = \frac1M \langle g_j, \tilde x_j \rangle`.  Summing the covariances against g,

.. math::
    E[\tilde x_j \tilde c_j] - \hat x_j c_j = \frac{p}{M} \left( g_j \hat x_j^T \hat x_j + \hat x_j g_j^T \hat x_j
        - 2 \, \mathrm{diag}(g_j \hat x_j^T) \, \hat x_j \right) + \frac1M E[S (S^T g_j \circ V_j)]

with :math:`V_j \le s^2/4` the codec's variance of the sketch's entries, s its step.  For [N, C] the first term is
:math:`p (g_i |\hat x|^2/N + \hat x_i c - 2 g_i \hat x_i^2 / N)`, about :math:`(g_i + \hat x_i c)/k`.  The gradient of x
is off by :math:`-\gamma / \sigma` times this.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from rmm_gnn.codecs import Codec, row_tiles
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.sketches import CountSketch, Draw

# For blocks of the sketch and for the permutation; entries of the normalised input are read back in smaller tiles.
_WORKSPACE_BYTES = 16 * 2**20
_SKETCH = CountSketch()


def kept_rows(rate: float, num_rows: int) -> int:
    """Return k = round(rate N), between 1 and N."""
    # A rate of 1 must not turn a symbolic N into an expression.
    return num_rows if rate == 1.0 else torch.sym_max(1, torch.sym_min(round(rate * num_rows), num_rows))


def encode_sketch(
    x: Tensor,  # [N, C, *]
    mean: Tensor,  # broadcasts over a row of x, as does scale
    scale: Tensor,
    payload: list[Tensor],
    codec: Codec,
    size: int,
    seed: Tensor,
    backend: str,
) -> None:
    """Write the sketch of (x - mean) scale into ``payload``.

    It is formed as (S^T x - (S^T 1) mean) scale, block by block, so that neither the normalised input nor the sketch
    exists whole in the accumulation type.  An x of more than two dimensions that is not contiguous is copied once.
    """
    matrix, shape = x.flatten(1), x.shape[1:]
    mean, scale = (values.expand(shape).flatten() for values in (mean, scale))
    draw = _draw(seed, size, backend)
    ones_sketch = _SKETCH.sketch_ones(x.shape[0], draw, mean.dtype)
    for start, stop, block in _SKETCH.iter_blocks(matrix, draw):
        block.addr_(ones_sketch[start:stop], mean, alpha=-1.0).mul_(scale)
        codec.encode(block, payload, start, seed, backend=backend)


def sketch_products(
    grad_output: Tensor,  # [N, C, *]
    payload: list[Tensor],
    codec: Codec,
    size: int,
    seed: Tensor | None,
    backend: str,
) -> Tensor:  # [C]
    """Sum grad_output times the estimate over each channel, as S^T grad_output times what the codec stores.

    A grad_output of more than two dimensions that is not contiguous is copied once.
    """
    matrix, shape = grad_output.flatten(1), grad_output.shape[1:]
    total = grad_output.new_zeros(matrix.shape[1], dtype=accumulation_dtype(grad_output.dtype))
    for start, stop, block in _SKETCH.iter_blocks(matrix, _draw(seed, size, backend)):
        for first, last in row_tiles(stop - start, matrix.shape[1], _WORKSPACE_BYTES // 4, block.element_size()):
            rows = codec.decode(payload, start + first, start + last, matrix.shape[1], block.dtype, backend=backend)
            total += block[first:last].mul_(rows).sum(0)
    return total.view(shape[0], -1).sum(1)


def iter_estimates(
    payload: list[Tensor],
    like: Tensor,  # [N, C, *]
    codec: Codec,
    size: int,
    seed: Tensor | None,
    tile_bytes: int,
    backend: str,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``(rows, estimate)``, some rows of the normalised input at a time, in no order, every row once."""
    dtype, num_columns = accumulation_dtype(like.dtype), like[0].numel()
    height = max(1, tile_bytes // (num_columns * dtype.itemsize))
    for tile in _SKETCH.iter_rows(like.shape[0], _draw(seed, size, backend), height, dtype):
        block = codec.decode(payload, tile.first, tile.last, num_columns, dtype, backend=backend)
        estimate = block.index_select(0, tile.buckets).mul_(tile.signs.unsqueeze(1))
        yield tile.rows, estimate.view(-1, *like.shape[1:])


def _draw(seed: Tensor | None, size: int, backend: str) -> Draw:
    assert seed is not None  # kept wherever rows were sketched
    return Draw(seed, size, workspace_bytes=_WORKSPACE_BYTES, backend=backend)
