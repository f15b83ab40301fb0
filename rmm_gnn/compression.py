"""What is kept of x, and the weight gradient from it: centre, sketch, encode; decode, sketch grad_output, multiply."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rmm_gnn.anchor import Anchor
from rmm_gnn.codecs import get_codec, row_tiles
from rmm_gnn.config import RMMConfig
from rmm_gnn.control_variates import column_means, column_sums, nonfinite_marks, rank_one_term
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.sketches import Draw


class CompressedActivation(NamedTuple):
    """All that backward needs of x besides the seed.

    Attributes:
        payload: The encoded sketch, as the codec stores it.
        mean: Column means of x [N], or what an anchor has in their place, in the accumulation type; None without
            centring.
        state: What the sketch family depends on besides the seed.
    """

    payload: tuple[Tensor, ...]
    mean: Tensor | None
    state: tuple[Tensor, ...]

    def to_list(self) -> list[Tensor]:
        """Flatten to the list of tensors that is saved for backward."""
        return [*self.payload, *([] if self.mean is None else [self.mean]), *self.state]

    @staticmethod
    def from_list(tensors: list[Tensor], config: RMMConfig) -> CompressedActivation:
        """Rebuild what ``to_list`` flattened under the same config."""
        split = get_codec(config.codec).num_tensors
        payload, rest = tuple(tensors[:split]), tensors[split:]
        mean = rest.pop(0) if config.center else None
        return CompressedActivation(payload, mean, tuple(rest))


def compress(
    x: Tensor,  # [B, N]
    config: RMMConfig,
    seed: Tensor,
    row_norms: Tensor | None = None,  # [B]
    anchor: Anchor | None = None,
) -> CompressedActivation:
    """Centre, sketch and encode x, B >= 1, or x less its fit on an anchor.

    Families that read norms of an earlier grad_output's rows are given them.

    With centring the sketch of X - 1 m^T is formed as S^T X - (S^T 1) m^T, so no centred copy of X is made.  Nor is one
    of X less its fit on X_0: its sketch is S^T X - (S^T X_0) A - (S^T 1) m^T, a second sketch and a product of k rows.
    """
    family, codec, num_rows = config.family, get_codec(config.codec), x.shape[0]
    size = config.sketch_size(num_rows)
    if anchor is not None:
        mean = anchor.mean
    else:
        mean = column_means(x, config.workspace_bytes) if config.center else None
    state = family.prepare(x, mean, seed, size, config.workspace_bytes, row_norms)
    marks = None if config.center or family.reads_every_row else nonfinite_marks(x)

    payload = codec.empty(size, x.shape[1], x.dtype, x.device)
    draw = Draw(seed, size, state, config.workspace_bytes, config.backend)
    ones_sketch = None if mean is None else family.sketch_ones(num_rows, draw, mean.dtype)
    if anchor is not None:  # a block of x_0's sketch lies beside each of this one
        draw = replace(draw, workspace_bytes=config.workspace_bytes // 2)
    for start, stop, block in family.iter_blocks(x, draw):
        if anchor is not None:
            quarter = replace(draw, workspace_bytes=draw.workspace_bytes // 2)
            rows = family.sketch_rows(anchor.x_0, quarter, start, stop).to(block.dtype)
            block.addmm_(rows, anchor.coefficients, alpha=-1.0)
        if mean is not None and ones_sketch is not None:
            block.addr_(ones_sketch[start:stop], mean, alpha=-1.0)
        if marks is not None:
            block += marks
        codec.encode(block, payload, start, seed)
    return CompressedActivation(tuple(payload), mean, state)


def compress_like(x: Tensor, config: RMMConfig) -> CompressedActivation:
    """Return tensors of the shapes and types that ``compress`` would return, for tracing."""
    size = config.sketch_size(x.shape[0])
    payload = get_codec(config.codec).empty(size, x.shape[1], x.dtype, x.device)
    mean = x.new_empty(x.shape[1], dtype=accumulation_dtype(x.dtype)) if config.center else None
    return CompressedActivation(tuple(payload), mean, config.family.empty_state(x.shape[0], size, x.dtype, x.device))


def weight_grad(
    grad_output: Tensor,  # [B, M]
    compressed: CompressedActivation,
    config: RMMConfig,
    seed: Tensor,
    *,
    num_columns: int,
    dtype: torch.dtype,
    exact_term: Tensor | None = None,  # [M, N]
) -> tuple[Tensor, Tensor]:  # [M, N], [M]
    r"""Estimate :math:`Y^T X` without bias from what was kept, and sum ``grad_output`` over its rows exactly.

    Returns :math:`(S^T Y)^T (S^T (X - 1 m^T)) + (Y^T 1) m^T` (Algorithm 1 with the centring of ``control_variates``) as
    ``dtype``, and Y^T 1, the bias gradient, in the accumulation type.  Sums are formed in the accumulation type.
    ``exact_term`` is added to the estimate before it is rounded: what an anchor took away.
    """
    family, codec = config.family, get_codec(config.codec)
    payload = list(compressed.payload)
    size = config.sketch_size(grad_output.shape[0])
    sums = column_sums(grad_output, config.workspace_bytes)
    marks = None if config.center or family.reads_every_row else nonfinite_marks(grad_output)

    if compressed.mean is not None:
        total = rank_one_term(sums, compressed.mean)
    else:
        total = sums.new_zeros(sums.shape[0], num_columns)
    if exact_term is not None:
        total += exact_term
    draw = Draw(seed, size, compressed.state, config.workspace_bytes, config.backend)
    for start, stop, block in family.iter_blocks(grad_output, draw):
        if marks is not None:
            block += marks
        # The block takes half of the workspace; what is decoded beside it must not follow its height.
        for first, last in row_tiles(stop - start, num_columns, config.workspace_bytes // 4, total.element_size()):
            rows = codec.decode(payload, start + first, start + last, num_columns, block.dtype)
            total.addmm_(block[first:last].T, rows)
    return total.to(dtype), sums
