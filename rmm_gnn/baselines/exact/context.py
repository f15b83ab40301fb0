"""EXACT's activations for models that call ``F.relu``, ``F.dropout`` and the like themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rmm_gnn.baselines.exact.activations import exact_elu, exact_leaky_relu, exact_relu
from rmm_gnn.baselines.exact.batch_norm import exact_batch_norm
from rmm_gnn.baselines.exact.config import DEFAULT_BITS, codec_of
from rmm_gnn.baselines.exact.dropout import exact_dropout

Call = Callable[..., Tensor]


def exact_activations(bits: int | None = DEFAULT_BITS) -> AbstractContextManager[Any]:
    """Context in which activations, dropout and BatchNorm of any model keep what EXACT keeps.

    Replaces ``F.relu``, ``torch.relu``, ``Tensor.relu``, their in-place forms, ``F.leaky_relu``, ``F.dropout``,
    ``F.elu`` and ``F.batch_norm`` on dense floating-point tensors while grad mode is on; dropout and BatchNorm only
    with ``training``.  Layers such as ``torch.nn.ReLU`` call these functions and are covered.  Everything else passes.

    Put it around the forward pass in training: ReLU and ELU cannot know the mode of the model.  Backward may run
    outside.  Under ``torch.utils.checkpoint`` it is unsupported, since the recomputation in backward would run
    outside too: convert the layers instead, with ``convert_to_exact``.

    Args:
        bits: Bits of what BatchNorm and ELU keep: 1, 2, 4, 8, or None to keep the type of the input.

    Raises:
        ValueError: If ``bits`` is out of range.
        TypeError: If ``bits`` is of the wrong type.

    Example:
        >>> x = torch.randn(4, 8, requires_grad=True)
        >>> with exact_activations():
        ...     out = x.relu()
        >>> torch.equal(out, x.relu())
        True
    """
    codec_of(bits)
    return _Replacements(
        {
            F.relu: _relu,
            torch.relu: _relu,
            torch.relu_: partial(_relu, inplace=True),
            torch.Tensor.relu: _relu,
            torch.Tensor.relu_: partial(_relu, inplace=True),
            F.leaky_relu: _leaky_relu,
            F.dropout: _dropout,
            F.elu: partial(_elu, bits=bits),
            F.batch_norm: partial(_batch_norm, bits=bits),
        }
    )


def exact_batch_norms(bits: int | None) -> AbstractContextManager[Any]:
    """Context in which ``F.batch_norm`` alone is replaced."""
    return _Replacements({F.batch_norm: partial(_batch_norm, bits=bits)}, without_grad=True)


class _Replacements(TorchFunctionMode):
    """Calls that are answered by another function; inside it the mode is off.

    ``without_grad`` replaces calls with grad mode off, too: what draws a seed must then do so there.
    """

    def __init__(self, replacements: Mapping[Any, Call], *, without_grad: bool = False) -> None:
        super().__init__()
        self.replacements = replacements
        self.without_grad = without_grad

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = self.replacements.get(func)
        if replacement is None or not (self.without_grad or torch.is_grad_enabled()):
            return func(*args, **kwargs)
        x = args[0] if args else kwargs.get("input", kwargs.get("self"))
        return (replacement if _is_plain(x) else func)(*args, **kwargs)


def _is_plain(x: Any) -> bool:
    """Whether x is dense and floating-point, and no subclass of Tensor: those have their own say."""
    return type(x) in (Tensor, torch.nn.Parameter) and x.layout == torch.strided and x.is_floating_point()


def _relu(input: Tensor, inplace: bool = False) -> Tensor:
    return _placed(input, exact_relu(input), inplace)


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    return _placed(input, exact_leaky_relu(input, negative_slope), inplace)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return _placed(input, exact_dropout(input, p, training), inplace)


def _elu(input: Tensor, alpha: float = 1.0, inplace: bool = False, *, bits: int | None) -> Tensor:
    return _placed(input, exact_elu(input, alpha, bits=bits), inplace)


def _batch_norm(input: Tensor, *args: Any, bits: int | None, **kwargs: Any) -> Tensor:
    return exact_batch_norm(input, *args, bits=bits, **kwargs)


def _placed(x: Tensor, out: Tensor, inplace: bool) -> Tensor:
    """Return ``out``, or ``x`` overwritten with it: nothing here keeps x, so both may change."""
    return x.copy_(out) if inplace and out is not x else out
