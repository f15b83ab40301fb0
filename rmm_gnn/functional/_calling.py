"""What the functions share: torch's override protocol, autocast, seeds for rounding, in-place forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import handle_torch_function, has_torch_function

from rmm_gnn._validation import check_local, check_seed
from rmm_gnn.codecs import CAST_DTYPES, Codec, get_codec
from rmm_gnn.seeding import draw_seed

P = ParamSpec("P")
R = TypeVar("R")


def overridable(function: Callable[P, R]) -> Callable[P, R]:
    """Let an active ``TorchFunctionMode`` see calls of ``function``, as it sees those of torch's own functions.

    Calls with distributed tensors raise a TypeError.
    """
    names = tuple(signature(function).parameters)

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            for name, value in (*zip(names, args, strict=False), *kwargs.items()):
                check_local(name, value)
            tensors = tuple(value for value in args if isinstance(value, Tensor))
            if has_torch_function(tensors):
                return handle_torch_function(wrapper, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return wrapper


def needs_grad(*tensors: Tensor | None) -> bool:
    """Whether autograd will ask for a gradient of one of them."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def refuse_transforms(function: str, *tensors: Tensor | None) -> None:
    """Raise under ``torch.func`` transforms and forward-mode differentiation: the operators have no rules for them.

    Tangents would be lost without a word, and ``vmap`` would drop out the same entries of every sample.

    Raises:
        RuntimeError: If one of the tensors is a transform's, or has a tangent.
    """
    if torch.compiler.is_compiling():
        return
    forward_mode = forward_ad._current_level >= 0
    for tensor in tensors:
        if tensor is None:
            continue
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            got = "a tensor of torch.func"
        elif forward_mode and forward_ad.unpack_dual(tensor).tangent is not None:
            got = "a tensor with a tangent"
        else:
            continue
        raise RuntimeError(
            f"{function} must be given plain tensors where it keeps anything (got {got}). Use torch's own function "
            "under transforms and forward-mode differentiation, or eval() and weights without a gradient."
        )


def spec_of(codec: str | Codec) -> str:
    """What the operators take, which look the codec up: parsing a name here would be traced by ``torch.compile``."""
    if isinstance(codec, str):
        return codec
    return codec.spec if isinstance(codec, Codec) else get_codec(codec).spec  # which says what is wrong


def rounding_seed(x: Tensor, codec: str, seed: Tensor | int | None, *, sketched: bool = False) -> Tensor:
    """Return ``seed``, or a fresh one where the codec rounds at random or what it stores is ``sketched``.

    It is drawn whether or not grad mode is on: reentrant checkpointing runs its first pass without, and what is drawn
    later in the same pass must come out the same in both.
    """
    if seed is not None:
        return check_seed(seed, x.device)
    if codec in CAST_DTYPES and not sketched:
        return torch.zeros((), dtype=torch.int64, device=x.device)
    return draw_seed(x)


def returned(x: Tensor, out: Tensor, inplace: bool) -> Tensor:
    """Return ``out``, or ``x`` overwritten with it."""
    return x.copy_(out) if inplace else out


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The type that autocast computes linear layers of ``x`` in, or None where it leaves them alone."""
    device_type = x.device.type
    if x.dtype == torch.float64 or not torch.amp.is_autocast_available(device_type):
        return None
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None


def as_autocast(*tensors: Tensor | None, like: Tensor) -> tuple[Tensor | None, ...]:
    """Cast as ``linear`` would under autocast, before the operator, so that what it keeps is of the low type too."""
    dtype = autocast_dtype(like)
    if dtype is None:
        return tensors

    def cast(tensor: Tensor | None) -> Tensor | None:
        eligible = tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if eligible and tensor is not None else tensor

    return tuple(cast(tensor) for tensor in tensors)


def as_rows(x: Tensor) -> Tensor:  # [*, N] -> [B, N]
    """Return ``x`` with its leading dimensions flattened."""
    return x if x.dim() == 2 else x.reshape(-1, x.shape[-1])


def shaped(out: Tensor, x: Tensor) -> Tensor:  # [B, M], [*, N] -> [*, M]
    """Return ``out`` with the leading dimensions that ``x`` has."""
    return out if x.dim() == 2 else out.reshape(*x.shape[:-1], out.shape[-1])
