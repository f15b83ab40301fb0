"""For each function of torch that keeps too much: what is called in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import rmm_gnn.functional as lean
from rmm_gnn.context.forward_pass import ForwardPass
from rmm_gnn.context.held import addmm_of_held, dropout_of_held, linear_of_held
from rmm_gnn.functional._calling import autocast_dtype
from rmm_gnn.sharing import note_config

Handler = Callable[..., Any]


def _is_dense(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.layout == torch.strided
        and x.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    )


def _is_weight(x: Any) -> bool:
    """Whether ``x`` is a trainable matrix of parameters, or a view of one such as its transpose."""
    owner = x._base if isinstance(x, Tensor) and x._base is not None else x
    return isinstance(owner, torch.nn.Parameter) and x.requires_grad and x.dim() == 2


def _fit(x: Any, weight: Any, bias: Any = None) -> bool:
    """Whether ``rmm_linear`` takes these; where not, torch shall say what is wrong."""
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if not all(_is_dense(tensor) and tensor.device == x.device for tensor in tensors):
        return False
    if x.dim() < 2 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        return False
    casts = autocast_dtype(x) is not None
    return (bias is None or bias.shape == weight.shape[:1]) and all(
        tensor.dtype == x.dtype or (casts and tensor.dtype != torch.float64) for tensor in tensors
    )


# Each handler takes what its functions document, by the same names.  NotImplemented stands for: call torch's own.


def _linear(this: ForwardPass, input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    if not (_fit(input, weight, bias) and weight.requires_grad):
        return NotImplemented
    out = linear_of_held(this.held, input, weight, bias)
    if out is not None:
        return out
    seed, shared, row_mask = this.seed(input), this.sketches.of(input, weight), this.row_mask_for(input)
    out = lean.rmm_linear(input, weight, bias, config=this.config, seed=seed, shared=shared, row_mask=row_mask)
    return note_config(out, this.config, row_mask)


def _matmul(this: ForwardPass, input: Tensor, other: Tensor) -> Tensor:
    return _linear(this, input, other.t()) if _is_weight(other) else NotImplemented


def _mm(this: ForwardPass, input: Tensor, mat2: Tensor) -> Tensor:
    return _matmul(this, input, mat2) if input.dim() == 2 else NotImplemented


def _addmm(
    this: ForwardPass, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    if not (_is_weight(mat2) and _is_dense(input) and _fit(mat1, mat2.t()) and mat1.dim() == 2):
        return NotImplemented
    out = addmm_of_held(this.held, input, mat1, mat2, beta, alpha)
    if out is not None:
        return out
    seed = this.seed(mat1)
    out = lean.addmm(input, mat1, mat2, beta=beta, alpha=alpha, config=this.config, seed=seed)
    return note_config(out, this.config)


def _relu(this: ForwardPass, input: Tensor, inplace: bool = False) -> Tensor:
    return lean.relu(input, inplace, backend=this.config.backend) if _is_dense(input) else NotImplemented


def _relu_method(this: ForwardPass, input: Tensor) -> Tensor:
    return _relu(this, input)


def _relu_(this: ForwardPass, input: Tensor) -> Tensor:
    return _relu(this, input, True)


def _leaky_relu(this: ForwardPass, input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    known = _is_dense(input)
    return lean.leaky_relu(input, negative_slope, inplace, backend=this.config.backend) if known else NotImplemented


def _leaky_relu_(this: ForwardPass, input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return _leaky_relu(this, input, negative_slope, True)


def _dropout(this: ForwardPass, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    known = _is_dense(input) and type(p) in (int, float) and 0 <= p <= 1
    if known and this.held is not None:
        out = dropout_of_held(this.held, input, p, training, inplace, backend=this.config.backend)
        if out is not None:
            return out
    return lean.dropout(input, p, training, inplace, backend=this.config.backend) if known else NotImplemented


def _batch_norm(
    this: ForwardPass,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    known = _is_dense(input) and input.dim() >= 2 and (running_mean is None) == (running_var is None)
    vectors = [vector for vector in (running_mean, running_var, weight, bias) if vector is not None]
    if not known or any(not _is_dense(vector) or vector.shape != input.shape[1:2] for vector in vectors):
        return NotImplemented
    if not training and running_mean is None:
        return NotImplemented
    args = input, running_mean, running_var, weight, bias, training, momentum, eps
    config = this.config
    return lean.batch_norm(*args, codec=config.norm_codec, rate=config.norm_rate, backend=config.backend)


def _torch_dropout(this: ForwardPass, input: Tensor, p: float, train: bool) -> Tensor:
    return _dropout(this, input, p, train)


def _torch_batch_norm(
    this: ForwardPass,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    return _batch_norm(this, input, running_mean, running_var, weight, bias, training, momentum, eps)


def _torch_layer_norm(
    this: ForwardPass,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _layer_norm(this, input, normalized_shape, weight, bias, eps)


def _layer_norm(
    this: ForwardPass,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not _is_dense(input):
        return NotImplemented
    return lean.layer_norm(
        input, normalized_shape, weight, bias, eps, codec=this.config.norm_codec, backend=this.config.backend
    )


def _rms_norm(
    this: ForwardPass, input: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    if not _is_dense(input):
        return NotImplemented
    return lean.rms_norm(
        input, normalized_shape, weight, eps, codec=this.config.norm_codec, backend=this.config.backend
    )


def _gelu(this: ForwardPass, input: Tensor, *, approximate: str = "none") -> Tensor:
    known = _is_dense(input) and approximate in ("none", "tanh")
    if not known:
        return NotImplemented
    return lean.gelu(input, approximate, codec=this.config.act_codec, backend=this.config.backend)


def _silu(this: ForwardPass, input: Tensor, inplace: bool = False) -> Tensor:
    if not _is_dense(input):
        return NotImplemented
    return lean.silu(input, inplace, codec=this.config.act_codec, backend=this.config.backend)


def _elu(this: ForwardPass, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    if not _is_dense(input):
        return NotImplemented
    return lean.elu(input, alpha, inplace, codec=this.config.act_codec, backend=this.config.backend)


def _elu_(this: ForwardPass, input: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(this, input, alpha, True)


HANDLERS: dict[Any, Handler] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.mm: _mm,
    Tensor.mm: _mm,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    F.relu: _relu,
    torch.relu: _relu_method,
    Tensor.relu: _relu_method,
    F.relu_: _relu_,
    torch.relu_: _relu_,
    Tensor.relu_: _relu_,
    F.leaky_relu: _leaky_relu,
    F.leaky_relu_: _leaky_relu_,
    F.dropout: _dropout,
    torch.dropout: _torch_dropout,
    F.batch_norm: _batch_norm,
    torch.batch_norm: _torch_batch_norm,
    F.layer_norm: _layer_norm,
    torch.layer_norm: _torch_layer_norm,
    F.rms_norm: _rms_norm,
    torch.rms_norm: _rms_norm,
    F.gelu: _gelu,
    F.silu: _silu,
    F.elu: _elu,
    F.elu_: _elu_,
}
