"""Batch normalisation with a coded input in C, for the CPU: what is coded is never there in full."""

from __future__ import annotations

import torch
from torch import Tensor

from rmm_gnn.kernels import codes_native
from rmm_gnn.kernels.codes_native import coded, done
from rmm_gnn.kernels.native import TYPES, check_taken, library, pointer, threads_for
from rmm_gnn.kernels.reference import accumulation_dtype


def encode_normalized(
    x: Tensor,  # [R, C]
    mean: Tensor,  # [C]
    inv_std: Tensor,  # [C]
    codes: Tensor,  # [R, packed_width(C, bits)] uint8
    scales: Tensor,  # [R, 2 ceil(C / group_size)]
    seed: Tensor,
    start: int,
    *,
    bits: int,
    group_size: int | None,
) -> None:
    """Write the codes of ``(x - mean) * inv_std``, rows [start, start + R) of a matrix, offsets and steps beside them.

    ``mean`` and ``inv_std`` are of the accumulation type.

    Raises:
        ValueError: If the kernels cannot read ``x``, or codes or scales are not contiguous.
        MemoryError: If there is no memory.
    """
    codes_native.encode(x, codes, scales, seed, start, mean=mean, inv_std=inv_std, bits=bits, group_size=group_size)


def reduce(
    grad_output: Tensor,  # [N, C]
    codes: Tensor,  # [N, packed_width(C, bits)] uint8
    scales: Tensor,  # [N, 2 ceil(C / group_size)]
    *,
    bits: int,
    group_size: int | None,
) -> tuple[Tensor, Tensor]:  # [C], [C]
    """Return column sums of ``grad_output``, and of its products with what was coded, in the accumulation type.

    Raises:
        ValueError: If the kernels cannot read ``grad_output``.
        MemoryError: If there is no memory.
    """
    check_taken(grad_output)
    grad_output, codes, scales = grad_output.contiguous(), codes.contiguous(), scales.contiguous()
    out = torch.zeros(2, grad_output.shape[1], dtype=torch.float64, device="cpu")
    if grad_output.numel():
        done(
            library().rmm_norm_reduce(
                *coded(codes, scales, grad_output.shape[1], bits, group_size),
                grad_output.shape[0],
                grad_output.data_ptr(),
                TYPES[grad_output.dtype],
                out.data_ptr(),
                threads_for(grad_output.numel(), grad_output.shape[0]),
            )
        )
    sums, products = out.to(accumulation_dtype(grad_output.dtype))
    return sums, products


def grad_input(
    grad_output: Tensor,  # [N, C]
    codes: Tensor,  # [N, packed_width(C, bits)] uint8
    scales: Tensor,  # [N, 2 ceil(C / group_size)]
    scale: Tensor,  # [C]
    mean_grad: Tensor,  # [C]
    mean_product: Tensor,  # [C]
    *,
    bits: int,
    group_size: int | None,
) -> Tensor:  # [N, C]
    """Return ``(grad_output - mean_grad - coded * mean_product) * scale`` in the type of ``grad_output``.

    The vectors are of the accumulation type.

    Raises:
        ValueError: If the kernels cannot read ``grad_output``.
        MemoryError: If there is no memory.
    """
    check_taken(grad_output)
    grad_output, codes, scales = grad_output.contiguous(), codes.contiguous(), scales.contiguous()
    out = torch.empty_like(grad_output)
    if grad_output.numel():
        vectors = [vector.contiguous() for vector in (scale, mean_grad, mean_product)]
        done(
            library().rmm_norm_gradient(
                *coded(codes, scales, grad_output.shape[1], bits, group_size),
                grad_output.shape[0],
                grad_output.data_ptr(),
                TYPES[grad_output.dtype],
                *map(pointer, vectors),
                out.data_ptr(),
                threads_for(grad_output.numel(), grad_output.shape[0]),
            )
        )
    return out
