r"""Batch normalisation that keeps its normalised input, or a sketch of its rows, in a codec.

With :math:`\hat x` the normalised input, M the entries of a channel and sums over them,

.. math::
    \partial\gamma = \sum g \hat x, \qquad \partial\beta = \sum g, \qquad
    \partial x = \frac{\gamma}{\sigma} \left( g - \tfrac1M \sum g - \hat x \, \tfrac1M \sum g \hat x \right)

What is read back is right on average and its entries are pairwise independent, so the gradient of gamma is unbiased.
The gradient of x is quadratic in what is kept: entry i of a channel is off by :math:`-\gamma g_i v_i / (\sigma M)` on
average, v_i the codec's variance there.  With INT2, :math:`v_i \le s^2/4` for the step s.  What a sketch of fewer rows
brings is in ``sketched_norm``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward
from rmm_gnn.autograd.sketched_norm import encode_sketch, iter_estimates, kept_rows, sketch_products
from rmm_gnn.codecs import Codec, NormCoding, get_codec, row_tiles
from rmm_gnn.kernels.reference import accumulation_dtype

_SEEDED = (torch.Tag.nondeterministic_seeded,)
# Normalised rows made, or read back, at a time.
_TILE_BYTES = 1 << 20


@torch.library.custom_op("rmm_gnn::batch_norm", mutates_args=(), tags=_SEEDED)
def batch_norm_op(
    x: Tensor,  # [N, C, *]
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    codec: str,
    keep_input: bool,
    seed: Tensor,
    rate: float,
    backend: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Torch's output; the new running statistics; 1/sigma and, with ``keep_input``, what is kept of x."""
    # Copies: an operator that changed its arguments could not have a backward.
    running = (
        [running_mean.clone(), running_var.clone()] if running_mean is not None and running_var is not None else []
    )
    new_mean, new_var = running or (None, None)
    out, mean, inv_std = torch.native_batch_norm(x, weight, bias, new_mean, new_var, True, momentum, eps)
    out = out.contiguous(memory_format=_memory_format(x))  # as it is, except in odd cases
    dtype = accumulation_dtype(x.dtype)
    kept = [inv_std.to(dtype, copy=True)]
    if keep_input:
        rows, columns, size = x.shape[0], x[0].numel(), kept_rows(rate, x.shape[0])
        payload = get_codec(codec).empty(size, columns, x.dtype, x.device)
        coding = _one_pass(get_codec(codec), x, size, backend)
        mean = mean.to(dtype)
        if coding is not None:
            coding.encode(x.flatten(1), _per_column(mean, x), _per_column(kept[0], x), payload, seed)
        elif size < rows:
            encode_sketch(
                x, _per_channel(mean, x), _per_channel(kept[0], x), payload, get_codec(codec), size, seed, backend
            )
        else:
            mean, scale = _per_channel(mean, x), _per_channel(kept[0], x)
            for start, stop in row_tiles(rows, columns, _TILE_BYTES, dtype.itemsize):
                block = x[start:stop].to(dtype).sub(mean).mul_(scale)
                get_codec(codec).encode(block.flatten(1), payload, start, seed, backend=backend)
        kept += payload
    return out, running, kept


@batch_norm_op.register_fake
def _(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    codec: str,
    keep_input: bool,
    seed: Tensor,
    rate: float,
    backend: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    stats = [running_mean, running_var] if running_mean is not None and running_var is not None else []
    kept = [x.new_empty(x.shape[1], dtype=accumulation_dtype(x.dtype))]
    if keep_input:
        kept += get_codec(codec).empty(kept_rows(rate, x.shape[0]), x[0].numel(), x.dtype, x.device)
    out = torch.empty_like(x, memory_format=_memory_format(x))
    return out, [torch.empty_like(tensor) for tensor in stats], kept


@torch.library.custom_op("rmm_gnn::batch_norm_backward", mutates_args=())
def batch_norm_backward_op(
    grad_output: Tensor,  # [N, C, *]
    weight: Tensor | None,
    kept: list[Tensor],
    codec: str,
    needs_x: bool,
    rate: float,
    seed: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (empty where it is not needed), gamma (0 where the input was not kept) and beta."""
    dtype = accumulation_dtype(grad_output.dtype)
    inv_std, payload = kept[0], list(kept[1:])
    size = kept_rows(rate, grad_output.shape[0])
    sketched = bool(payload) and size < grad_output.shape[0]
    channels = (0, *range(2, grad_output.dim()))
    coding = _one_pass(get_codec(codec), grad_output, size, backend) if payload else None
    if coding is not None:
        return _coded_backward(coding, grad_output, weight, inv_std, payload, needs_x)
    sums, products = torch.zeros_like(inv_std), torch.zeros_like(inv_std)
    for start, stop, normalized in _tiles([] if sketched else payload, grad_output, dtype, get_codec(codec), backend):
        block = grad_output[start:stop].to(dtype)
        sums += block.sum(channels)
        if normalized is not None:
            products += (normalized * block).sum(channels)
    if sketched:
        products = sketch_products(grad_output, payload, get_codec(codec), size, seed, backend)
    if not needs_x:
        return grad_output.new_empty(0), products, sums

    scale = _per_channel(inv_std if weight is None else inv_std * weight.to(dtype), grad_output)
    count = grad_output.numel() // max(1, sums.numel())
    mean_grad, mean_product = _per_channel(sums / count, grad_output), _per_channel(products / count, grad_output)
    grad_x = torch.empty_like(grad_output)

    def gradient(block: Tensor, normalized: Tensor | None) -> Tensor:
        assert normalized is not None  # kept wherever x needs a gradient
        rest = torch.addcmul(mean_grad, normalized, mean_product)
        return torch.sub(block.to(dtype), rest, out=rest).mul_(scale)

    if sketched:
        for rows, normalized in iter_estimates(
            payload, grad_output, get_codec(codec), size, seed, _TILE_BYTES, backend
        ):
            block = gradient(grad_output.index_select(0, rows), normalized)
            grad_x.index_copy_(0, rows.long(), block.to(grad_x.dtype))
    else:
        for start, stop, normalized in _tiles(payload, grad_output, dtype, get_codec(codec), backend):
            grad_x[start:stop] = gradient(grad_output[start:stop], normalized)
    return grad_x, products, sums


def _coded_backward(
    coding: NormCoding,
    grad_output: Tensor,
    weight: Tensor | None,
    inv_std: Tensor,
    payload: list[Tensor],
    needs_x: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``batch_norm_backward_op`` in two passes over the gradient, in which what was kept is read back as it goes."""
    matrix = grad_output.flatten(1)
    sums, products = (vector.view(inv_std.shape[0], -1).sum(1) for vector in coding.reduce(matrix, payload))
    if not needs_x:
        return grad_output.new_empty(0), products, sums
    scale = inv_std if weight is None else inv_std * weight.to(inv_std.dtype)
    count = grad_output.numel() // max(1, sums.numel())
    vectors = [_per_column(vector, grad_output) for vector in (scale, sums / count, products / count)]
    return coding.grad_input(matrix, payload, *vectors).view(grad_output.shape), products, sums


@batch_norm_backward_op.register_fake
def _(
    grad_output: Tensor,
    weight: Tensor | None,
    kept: list[Tensor],
    codec: str,
    needs_x: bool,
    rate: float,
    seed: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(grad_output) if needs_x else grad_output.new_empty(0)
    return grad_x, torch.empty_like(kept[0]), torch.empty_like(kept[0])


def _tiles(
    payload: list[Tensor], like: Tensor, dtype: torch.dtype, codec: Codec, backend: str
) -> Iterator[tuple[int, int, Tensor | None]]:
    """Read the normalised input back, some rows at a time, in the shape of ``like``; None where it was not kept."""
    if like.numel() == 0:
        return
    columns = like[0].numel()
    for start, stop in row_tiles(like.shape[0], columns, _TILE_BYTES, dtype.itemsize):
        rows = codec.decode(payload, start, stop, columns, dtype, backend=backend) if payload else None
        yield start, stop, None if rows is None else rows.view(-1, *like.shape[1:])


def _one_pass(codec: Codec, x: Tensor, size: int, backend: str) -> NormCoding | None:
    """Return what codes all rows of ``x`` in the pass that normalises them, where something does."""
    if size < x.shape[0] or x.numel() == 0 or not x.is_contiguous():
        return None
    return codec.norm_coding(x.flatten(1), backend)


def _memory_format(x: Tensor) -> torch.memory_format:
    """Return the format of the output: that of x where it is one of images, or else row by row."""
    for dim, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if x.dim() == dim and not x.is_contiguous() and x.is_contiguous(memory_format=memory_format):
            return memory_format
    return torch.contiguous_format


def _per_column(values: Tensor, like: Tensor) -> Tensor:  # [C] -> [C *]
    return values if like.dim() == 2 else values.repeat_interleave(like[0, 0].numel())


def _per_channel(values: Tensor, like: Tensor) -> Tensor:  # [C] -> [C, 1, ...]
    return values.view(-1, *(1,) * (like.dim() - 2))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor], list[Tensor]]) -> None:
    _, weight, bias, _, _, _, _, codec, keep_input, seed, rate, backend = inputs
    ctx.set_materialize_grads(False)
    ctx.codec, ctx.rate, ctx.backend = codec, rate, backend
    ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (weight, bias)]
    # gamma scales the gradient of x and serves nothing else; S is made again from the seed.
    ctx.save_for_backward(
        weight if ctx.needs_input_grad[0] else None, seed if keep_input and rate < 1.0 else None, *output[2]
    )


def _backward(ctx: Any, grad_output: Tensor | None, _: Any, __: Any) -> tuple[Tensor | None, ...]:
    refuse_double_backward("batch_norm")
    nothing = (None,) * 9
    if grad_output is None:
        return (None, None, None, *nothing)
    weight, seed, *kept = ctx.saved_tensors
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x, products, sums = torch.ops.rmm_gnn.batch_norm_backward(
        grad_output, weight, kept, ctx.codec, needs_x, ctx.rate, seed, ctx.backend
    )
    return (
        grad_x if needs_x else None,
        products.to(ctx.dtypes[0]) if needs_weight else None,
        sums.to(ctx.dtypes[1]) if needs_bias else None,
        *nothing,
    )


batch_norm_op.register_autograd(_backward, setup_context=_setup_context)
