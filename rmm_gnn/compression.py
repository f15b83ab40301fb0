"""What is kept of x, and the weight gradient from it: centre, sketch, encode; decode, sketch grad_output, multiply."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from rmm_gnn.anchor import Anchor
from rmm_gnn.codecs import get_codec, row_tiles
from rmm_gnn.config import RMMConfig
from rmm_gnn.control_variates import column_means, column_sums, nonfinite_marks, rank_one_term
from rmm_gnn.kernels.reference import accumulation_dtype
from rmm_gnn.kernels.rows import count_of
from rmm_gnn.sketches import Draw, Pass, Sketch


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
    rows: Tensor | None = None,  # [B']
) -> CompressedActivation:
    """Centre, sketch and encode x, B >= 1, or x less its fit on an anchor, or some ``rows`` of x and no others.

    Families that read norms of an earlier grad_output's rows are given them: those of ``rows`` where there are such.

    With centring the sketch of X - 1 m^T is formed as S^T X - (S^T 1) m^T, so no centred copy of X is made.  Nor is one
    of X less its fit on X_0: its sketch is S^T X - (S^T X_0) A - (S^T 1) m^T, a second sketch and a product of k rows.
    """
    family, codec, num_rows = config.family, get_codec(config.codec), count_of(x, rows)
    if num_rows == 0:
        return compress_like(x, config, 0)
    x, rows = _selectable(x, rows, config)
    draw = Draw(seed, config.sketch_size(num_rows), (), config.workspace_bytes, config.backend, rows)
    whole = _one_pass(family, x, draw) if config.center and anchor is None else None
    if anchor is not None:
        mean = anchor.mean
    elif whole is not None:
        mean = whole.sums.div_(num_rows)
    else:
        mean = column_means(x, config.workspace_bytes, rows) if config.center else None
    selected = {} if rows is None else {"rows": rows}
    state = family.prepare(x, mean, seed, draw.sketch_size, config.workspace_bytes, row_norms, **selected)
    draw = replace(draw, state=state)
    unread = not (config.center or family.reads_every_row)
    marks = nonfinite_marks(x, config.workspace_bytes, rows) if unread else None

    adopted = None if whole is None else codec.adopt(whole.sketch, x.dtype)
    payload = codec.empty(draw.sketch_size, x.shape[1], x.dtype, x.device) if adopted is None else adopted
    if mean is None and anchor is None and marks is None and codec.bits_of_rows is not None:
        if family.encode_in_one_pass(x, draw, payload, codec.bits_of_rows):
            return CompressedActivation(tuple(payload), None, state)
    ones_sketch: Tensor | None
    if whole is not None:
        blocks, ones_sketch = _single(whole), whole.ones
    else:
        ones_sketch = None if mean is None else family.sketch_ones(num_rows, draw, mean.dtype)
        if anchor is not None:  # a block of x_0's sketch lies beside each of this one
            draw = replace(draw, workspace_bytes=config.workspace_bytes // 2)
        blocks = family.iter_blocks(x, draw)
    for start, stop, block in blocks:
        if anchor is not None:
            quarter = replace(draw, workspace_bytes=draw.workspace_bytes // 2)
            rows = family.sketch_rows(anchor.x_0, quarter, start, stop).to(block.dtype)
            block.addmm_(rows, anchor.coefficients, alpha=-1.0)
        if mean is not None and ones_sketch is not None:
            block.addr_(ones_sketch[start:stop], mean, alpha=-1.0)
        if marks is not None:
            block += marks
        if adopted is None:
            codec.encode(block, payload, start, seed, backend=config.backend)
    return CompressedActivation(tuple(payload), mean, state)


def _one_pass(family: Sketch, matrix: Tensor, draw: Draw) -> Pass | None:
    """Return what one pass gives where half of the workspace, a block's share, holds the whole sketch."""
    sketch_bytes = draw.sketch_size * matrix.shape[1] * accumulation_dtype(matrix.dtype).itemsize
    return family.one_pass(matrix, draw) if sketch_bytes <= draw.workspace_bytes // 2 else None


def _single(whole: Pass) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the one block that there is, as ``Sketch.iter_blocks`` yields them."""
    yield 0, whole.sketch.shape[0], whole.sketch


def compress_like(
    x: Tensor, config: RMMConfig, num_rows: int | None = None, size: int | None = None
) -> CompressedActivation:
    """Return tensors of the shapes and types that ``compress`` would return, for tracing.

    Args:
        x: What is sketched, or some rows of it.
        config: What to keep.
        num_rows: How many rows are sketched; all if None.
        size: k; that of the config for so many rows if None.
    """
    num_rows = x.shape[0] if num_rows is None else num_rows
    size = config.sketch_size(num_rows) if size is None else size
    payload = get_codec(config.codec).empty(size, x.shape[1], x.dtype, x.device)
    mean = x.new_empty(x.shape[1], dtype=accumulation_dtype(x.dtype)) if config.center else None
    return CompressedActivation(tuple(payload), mean, config.family.empty_state(num_rows, size, x.dtype, x.device))


def _selectable(matrix: Tensor, rows: Tensor | None, config: RMMConfig) -> tuple[Tensor, Tensor | None]:
    """Return matrix and rows as they are, or a copy of the rows for a family that does not select by itself."""
    if rows is None or config.family.selects_rows:
        return matrix, rows
    return matrix.index_select(0, rows), None


def weight_grad(
    grad_output: Tensor,  # [B, M]
    compressed: CompressedActivation,
    config: RMMConfig,
    seed: Tensor,
    *,
    num_columns: int,
    dtype: torch.dtype,
    exact_term: Tensor | None = None,  # [M, N]
    rows: Tensor | None = None,  # [B']
) -> tuple[Tensor, Tensor]:  # [M, N], [M]
    r"""Estimate :math:`Y^T X` without bias from what was kept, and sum ``grad_output`` over its rows exactly.

    Returns :math:`(S^T Y)^T (S^T (X - 1 m^T)) + (Y^T 1) m^T` (Algorithm 1 with the centring of ``control_variates``) as
    ``dtype``, and Y^T 1, the bias gradient, in the accumulation type.  Sums are formed in the accumulation type.
    ``exact_term`` is added to the estimate before it is rounded: what an anchor took away.  With ``rows``, X and Y are
    those rows, as in ``compress``; the sum is still that of all.
    """
    family, codec = config.family, get_codec(config.codec)
    payload = list(compressed.payload)
    num_rows, whole = count_of(grad_output, rows), rows is None
    draw = Draw(seed, config.sketch_size(num_rows), compressed.state, config.workspace_bytes, config.backend, rows)
    one_pass = _one_pass(family, grad_output, draw) if num_rows else None
    sums = one_pass.sums if one_pass is not None and whole else column_sums(grad_output, config.workspace_bytes)
    if num_rows == 0:
        return grad_output.new_zeros(grad_output.shape[1], num_columns, dtype=dtype), sums
    grad_output, rows = _selectable(grad_output, rows, config)
    draw = replace(draw, rows=rows)
    unread = not (config.center or family.reads_every_row)
    marks = nonfinite_marks(grad_output, config.workspace_bytes, rows) if unread else None

    if compressed.mean is not None:
        if whole:
            selected = sums
        elif one_pass is not None:
            selected = one_pass.sums
        else:
            selected = column_sums(grad_output, config.workspace_bytes, rows)
        total = rank_one_term(selected, compressed.mean)
    else:
        total = sums.new_zeros(sums.shape[0], num_columns)
    if exact_term is not None:
        total += exact_term
    for start, stop, block in family.iter_blocks(grad_output, draw) if one_pass is None else _single(one_pass):
        if marks is not None:
            block += marks
        # The block takes half of the workspace; what is decoded beside it must not follow its height.
        for first, last in row_tiles(stop - start, num_columns, config.workspace_bytes // 4, total.element_size()):
            rows = codec.decode(payload, start + first, start + last, num_columns, block.dtype, backend=config.backend)
            total.addmm_(block[first:last].T, rows)
    return total.to(dtype), sums
