"""Linear maps of an input that many layers read: x, or one code of it, is kept for all of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.coded_linear
import rmm_gnn.autograd.rmm_linear  # noqa: F401  (registers the operators)
from rmm_gnn._validation import check_device, check_floating, check_tensor
from rmm_gnn.autograd.shared_input_linear import SharedInputLinear
from rmm_gnn.codecs import CAST_DTYPES, Codec
from rmm_gnn.functional._calling import (
    as_rows,
    autocast_dtype,
    overridable,
    refuse_transforms,
    rounding_seed,
    shaped,
    spec_of,
)
from rmm_gnn.sharing import KeptOnce

# Finds the codes that are being kept; holds none.
_SHARED_CODES = KeptOnce()


@overridable
def shared_input_linear(
    x: Tensor,  # [*, N]
    weight: Tensor,  # [M, N]
    *,
    scale: float = 1.0,
    codec: str | Codec = "fp32",
    seed: Tensor | int | None = None,
) -> Tensor:  # [*, M]
    """Linear map of an input that other layers read too: it is kept once for all of them, whole or in a codec.

    The output and the gradient of x are exact.  With "fp32" x itself is kept, also under autocast, where ``linear``
    would keep a converted copy, and the gradient of ``weight`` is exact.  With another codec the code of x is kept, the
    same for every call until backward, if x is not changed in place, and the gradient of ``weight`` is unbiased with
    the int codecs.  Converted copies live for the duration of the call, in forward and again in backward.  While
    ``torch.compile`` traces, every call keeps a code of its own.

    Args:
        x: Input.
        weight: Weight; kept for the gradient of x, as it is.
        scale: Factor of the output; a scaled copy of the weight would be kept in every layer.
        codec: How x is kept.
        seed: Decides the rounding, and makes this call keep a code of its own; drawn afresh at every call if None,
            whether or not there is a code already.

    Returns:
        The exact output.

    Raises:
        TypeError: If x or ``weight`` is not a tensor, or is not a dense floating-point one where a code of x is kept.
        ValueError: If ``codec`` is unknown, or devices differ.
        RuntimeError: As torch raises it; under autocast, with a scale or a codec also under ``torch.func`` transforms
            and forward-mode differentiation, or in backward, if it is run with ``create_graph=True``.
    """
    check_device("weight", check_tensor("weight", weight), "x", check_tensor("x", x))
    spec, dtype = spec_of(codec), autocast_dtype(x)
    mismatched = dtype is None and x.dtype != weight.dtype  # torch has the words for it
    if keeps_whole(x, spec):
        if mismatched or (scale == 1.0 and (dtype is None or dtype == x.dtype == weight.dtype)):
            return F.linear(x, weight)
        refuse_transforms("shared_input_linear", x, weight)
        return SharedInputLinear.apply(x, weight, dtype or x.dtype, scale)
    check_floating("x", x)
    check_floating("weight", weight)
    drawn = rounding_seed(x, spec, seed)
    if not (torch.is_grad_enabled() and weight.requires_grad) or x.numel() == 0 or mismatched:
        return F.linear(x, weight if scale == 1.0 else scale * weight)
    refuse_transforms("shared_input_linear", x, weight)
    # Whoever gives a seed wants the rounding of that seed, not one that was made before.
    payload = _encode(x, spec, drawn) if seed is not None else shared_code(x, spec, drawn)
    weight = weight if dtype is None else weight.to(dtype)
    return shaped(torch.ops.rmm_gnn.coded_linear(as_rows(x), weight, payload, spec, float(scale)), x)


def keeps_whole(x: Tensor, codec: str) -> bool:
    """Whether keeping ``x`` in the codec is keeping x itself."""
    return codec in CAST_DTYPES and CAST_DTYPES[codec] in (None, x.dtype)


def shared_code(x: Tensor, codec: str, seed: Tensor) -> list[Tensor]:
    """Return the code that is being kept of ``x`` for a backward pass to come, or else one rounded under ``seed``."""
    return _SHARED_CODES.get_or_make(x, codec, lambda: _encode(x, codec, seed))


def _encode(x: Tensor, codec: str, seed: Tensor) -> list[Tensor]:
    return torch.ops.rmm_gnn.encode(as_rows(x).detach(), codec, seed)
