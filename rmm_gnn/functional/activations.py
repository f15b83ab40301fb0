"""Activation functions that keep one bit, or a few, for every entry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.autograd.activations
import rmm_gnn.autograd.relu
from rmm_gnn._validation import check_choice, check_floating, check_number, check_tensor
from rmm_gnn.codecs import Codec
from rmm_gnn.functional._calling import (
    needs_grad,
    overridable,
    refuse_transforms,
    returned,
    rounding_seed,
    spec_of,
)
from rmm_gnn.kernels import BACKENDS


@overridable
def relu(x: Tensor, inplace: bool = False, *, backend: str = "auto") -> Tensor:
    """``torch.nn.functional.relu`` that keeps one bit for every entry; output and gradient are exact.

    Args:
        x: Any shape.
        inplace: Overwrite x with the output.
        backend: Which implementation, as in ``RMMConfig``.

    Returns:
        The output, of the shape of x.

    Raises:
        TypeError: If x is not a tensor, or not a dense floating-point one where a gradient is needed, or another
            argument is of the wrong type.
        ValueError: If ``backend`` is unknown or does not take x.
        ImportError: If what ``backend`` needs is not installed.
        RuntimeError: Under transforms of ``torch.func`` or forward-mode differentiation; in backward, if it is run with
            ``create_graph=True``.

    Example:
        >>> relu(torch.tensor([-1.0, 2.0], requires_grad=True))
        tensor([0., 2.], grad_fn=<GeneratedBackwardFor_rmm_gnn_relu_defaultBackward>)
    """
    check_choice("backend", backend, BACKENDS)
    if not needs_grad(check_tensor("x", x)):
        return F.relu(x, inplace)
    refuse_transforms("relu", x)
    out = torch.ops.rmm_gnn.relu(check_floating("x", x), None, backend)[0]
    return returned(x, out, inplace)


@overridable
def leaky_relu(x: Tensor, negative_slope: float = 0.01, inplace: bool = False, *, backend: str = "auto") -> Tensor:
    """``torch.nn.functional.leaky_relu`` that keeps one bit for every entry; output and gradient are exact.

    Args:
        x: Any shape.
        negative_slope: Slope below 0.
        inplace: Overwrite x with the output.
        backend: Which implementation, as in ``RMMConfig``.

    Returns:
        The output, of the shape of x.

    Raises:
        TypeError: If x is not a tensor, or not a dense floating-point one where a gradient is needed, or another
            argument is of the wrong type.
        ValueError: If ``backend`` is unknown or does not take x.
        ImportError: If what ``backend`` needs is not installed.
        RuntimeError: Under transforms of ``torch.func`` or forward-mode differentiation; in backward, if it is run with
            ``create_graph=True``.
    """
    check_choice("backend", backend, BACKENDS)
    check_number("negative_slope", negative_slope)
    if not needs_grad(check_tensor("x", x)):
        return F.leaky_relu(x, negative_slope, inplace)
    refuse_transforms("leaky_relu", x)
    out = torch.ops.rmm_gnn.relu(check_floating("x", x), float(negative_slope), backend)[0]
    return returned(x, out, inplace)


@overridable
def gelu(
    x: Tensor,
    approximate: str = "none",
    *,
    codec: str | Codec = "int4",
    seed: Tensor | int | None = None,
    backend: str = "auto",
) -> Tensor:
    """``torch.nn.functional.gelu`` that keeps its derivative in a codec.

    The output is exact; the gradient of x is unbiased with the int codecs.

    Args:
        x: Any shape; offsets and steps of the code belong to runs of the last dimension.
        approximate: "none" or "tanh".
        codec: How the derivative is kept.
        seed: Decides the rounding; drawn afresh at every call if None.
        backend: What codes, as in ``RMMConfig``.

    Returns:
        The output, of the shape of x.

    Raises:
        TypeError: If x is not a tensor, or not a dense floating-point one where a gradient is needed, or another
            argument is of the wrong type.
        ValueError: If ``approximate``, ``codec`` or ``backend`` is unknown, or ``backend`` does not run on x's device.
        ImportError: If what ``backend`` needs is not installed.
        RuntimeError: Under transforms of ``torch.func`` or forward-mode differentiation; in backward, if it is run with
            ``create_graph=True``.
    """
    name = {"none": "gelu", "tanh": "gelu_tanh"}[check_choice("approximate", approximate, ("none", "tanh"))]
    return _activation(x, name, 0.0, codec, seed, backend)


@overridable
def silu(
    x: Tensor,
    inplace: bool = False,
    *,
    codec: str | Codec = "int4",
    seed: Tensor | int | None = None,
    backend: str = "auto",
) -> Tensor:
    """``torch.nn.functional.silu`` that keeps its derivative in a codec; see ``gelu``."""
    return returned(x, _activation(x, "silu", 0.0, codec, seed, backend), inplace)


@overridable
def elu(
    x: Tensor,
    alpha: float = 1.0,
    inplace: bool = False,
    *,
    codec: str | Codec = "int4",
    seed: Tensor | int | None = None,
    backend: str = "auto",
) -> Tensor:
    """``torch.nn.functional.elu`` that keeps its derivative in a codec; see ``gelu``."""
    check_number("alpha", alpha)
    return returned(x, _activation(x, "elu", float(alpha), codec, seed, backend), inplace)


def _activation(
    x: Tensor, name: str, setting: float, codec: str | Codec, seed: Tensor | int | None, backend: str
) -> Tensor:
    check_tensor("x", x)
    check_choice("backend", backend, BACKENDS)
    codec = spec_of(codec)
    seed = rounding_seed(x, codec, seed)
    if not needs_grad(x) or x.numel() == 0:
        return rmm_gnn.autograd.activations.ACTIVATIONS[name].function(x, setting)
    refuse_transforms(name, x)
    return torch.ops.rmm_gnn.activation(check_floating("x", x), name, setting, codec, seed, backend)[0]
