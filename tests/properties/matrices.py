"""Tensors that nobody chose: shapes, types, strides and values."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SEEDS = st.integers(-(2**63), 2**63 - 1)


def _permuted(x: Tensor) -> Tensor:
    """As images are with channels last: the last dimension lies closest in memory to none of the others."""
    return x.movedim(-1, 0).contiguous().movedim(0, -1)


def _offset(x: Tensor) -> Tensor:
    whole = torch.cat([x.new_full((3,), torch.nan), x.reshape(-1), x.new_full((2,), torch.nan)])
    return whole[3 : 3 + x.numel()].view(x.shape)


def _flipped_twice(x: Tensor) -> Tensor:
    return x.flip(-1).flip(-1) if x.dim() else x


# What keeps the values.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT if x.dim() > 1 else x,
    "permuted": lambda x: _permuted(x) if x.dim() > 1 else x,
    "every other column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "offset": _offset,
    "flipped twice": _flipped_twice,
    "narrowed": lambda x: torch.cat([x, x.new_full((*x.shape[:-1], 1), torch.nan)], -1)[..., : x.shape[-1]],
}
# What repeats one of them.
EXPANSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "one row": lambda x: x[:1].expand_as(x),
    "one column": lambda x: x[..., :1].expand_as(x),
    "one number": lambda x: x.reshape(-1)[:1].view([1] * x.dim()).expand_as(x) if x.numel() else x,
}


def shapes(min_rows: int = 0, min_columns: int = 0, max_dims: int = 4) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes [*, N] of few entries: some flat, some of one row or one column, some with more leading dimensions."""
    usual = st.tuples(st.integers(min_rows, 50), st.integers(min_columns, 40))
    wide = st.tuples(st.integers(min_rows, 2), st.integers(100, 400))
    tall = st.tuples(st.integers(100, 400), st.integers(min_columns, 2))
    deep = st.lists(st.integers(min_rows, 6), min_size=2, max_size=max(2, max_dims - 1)).flatmap(
        lambda leading: st.integers(min_columns, 12).map(lambda columns: (*leading, columns))
    )
    flat = [usual, usual, wide, tall]
    return st.one_of(*flat, deep, deep) if max_dims > 2 else st.one_of(*flat)


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: tuple[int, ...] | st.SearchStrategy[tuple[int, ...]],
    dtype: torch.dtype,
    *,
    max_exponent: int = 2,
    expanded: bool = True,
) -> Tensor:
    """A tensor of normal numbers on some scale, 10^``max_exponent`` at most, with some shift and of some strides."""
    shape = shape if isinstance(shape, tuple) else draw(shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = 10.0 ** draw(st.integers(-2, max_exponent))
    shift = draw(st.sampled_from([0.0, 0.0, 1.0, -30.0]))
    x = (torch.randn(shape, generator=generator, dtype=torch.float64) + shift) * scale
    kinds = {**VIEWS, **(EXPANSIONS if expanded and prod(shape) else {})}
    name = draw(st.sampled_from(sorted(kinds)))
    return kinds[name](x.to(dtype)) if x.dim() and shape[0] else x.to(dtype)
