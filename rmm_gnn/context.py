"""Activation compression for models that nobody edited: a mode that reaches the functions they call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

import rmm_gnn.functional as lean
from rmm_gnn.config import RMMConfig
from rmm_gnn.sharing import KeptOnce

Handler = Callable[..., Any]


class compress_activations(TorchFunctionMode):
    """While active, the functions a model calls keep little for backward; outputs stay what they are.

    ====================================================  =========================================================
    calls of                                              keep
    ====================================================  =========================================================
    ``F.linear``, ``torch.addmm``, ``mm``, ``matmul``,    a sketch of the input (``rmm_linear``, ``addmm``); products
    ``@``, with a weight that needs a gradient            with ``@`` where the right side is a Parameter
    ``F.relu``, ``torch.relu``, ``Tensor.relu``,          one bit for every entry
    ``F.leaky_relu`` and their in-place forms
    ``F.dropout``                                         a seed
    ``F.batch_norm``, ``F.layer_norm``                    the normalised input in ``config.norm_codec``
    ``F.gelu``, ``F.silu``, ``F.elu``                     the derivative in ``config.act_codec``
    ====================================================  =========================================================

    Modules of PyTorch and PyTorch Geometric call these, so stock ``GCN2Conv``, ``GCNConv``, ``SAGEConv`` and
    ``GATConv`` are reached, and so are converted layers: linear
    layers that read one tensor under one config share one sketch.
    Other functions pass through and keep what they keep; ``memory_report`` lists them.

    The forward pass has to run inside, backward may run inside or outside.  A mode is not active while activation
    checkpointing recomputes a block, so enter it inside the checkpointed function, or through ``context_fn`` of
    ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``; a checkpointed block that starts within the mode
    raises an error, since its second pass would not be the first one.

    Args:
        config: What to keep; ``RMMConfig()`` if None.

    Raises:
        TypeError: If ``config`` is not an ``RMMConfig``.
        RuntimeError: In the forward pass, if ``torch.utils.checkpoint`` starts within the mode.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> with compress_activations(RMMConfig(rate=0.1)):
        ...     loss = model(torch.randn(100, 8)).square().mean()
        >>> loss.backward()
    """

    def __init__(self, config: RMMConfig | None = None) -> None:
        super().__init__()
        if config is not None and not isinstance(config, RMMConfig):
            raise TypeError(f"'config' must be an RMMConfig (got {type(config).__name__}). Write RMMConfig(rate=0.1).")
        self.config = RMMConfig() if config is None else config
        self._shared = KeptOnce()
        self._checkpoints_outside = 0

    def __enter__(self) -> compress_activations:
        self._checkpoints_outside = _count_checkpoints(sys._getframe(1))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._shared = KeptOnce()  # what was shared must not outlive the pass
        super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is None:
            if getattr(func, "__module__", None) not in _OWN_MODULES:
                return func(*args, **kwargs)
            self._check_checkpoints()
            if func is lean.rmm_linear:
                kwargs = {"shared": self._shared, **kwargs}
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        # Subclasses of Tensor have a say of their own in what a function means.
        if not _is_plain(args, kwargs):
            return func(*args, **kwargs)
        self._check_checkpoints()
        # Without this an outer mode would see, and compress, what the handler calls.
        with torch._C.DisableTorchFunction():
            return handler(self, func, *args, **kwargs)

    def _check_checkpoints(self) -> None:
        if not torch.compiler.is_compiling() and _count_checkpoints(sys._getframe(2)) > self._checkpoints_outside:
            raise RuntimeError(
                "compress_activations must be entered inside a checkpointed function, or through context_fn (got "
                "torch.utils.checkpoint called within it). It is not active while the block is recomputed, and "
                "dropout would then use another mask: write `with compress_activations(config):` in the function."
            )


def _count_checkpoints(frame: FrameType | None) -> int:
    """Count the calls of ``torch.utils.checkpoint`` on the stack whose block is running."""
    count = 0
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _CHECKPOINT_FILE and code.co_name == "checkpoint":
            count += 1
        frame = frame.f_back
    return count


def _is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return all(
        type(value) in (Tensor, torch.nn.Parameter) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
    )


def _is_dense(x: Any) -> bool:
    return (
        isinstance(x, Tensor)
        and x.layout == torch.strided
        and x.dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    )


def _linear(mode: compress_activations, func: Handler, input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    if not (_is_dense(input) and weight.dim() == 2 and weight.requires_grad and input.dim()):
        return func(input, weight, bias)
    return lean.rmm_linear(input, weight, bias, config=mode.config, shared=mode._shared)


def _addmm(
    mode: compress_activations, func: Handler, input: Tensor, mat1: Tensor, mat2: Tensor, *rest: Any, **kwargs: Any
) -> Tensor:
    known = not rest and kwargs.keys() <= {"beta", "alpha"}
    if not (known and _is_dense(mat1) and mat1.dim() == 2 and mat2.requires_grad and _is_dense(mat2)):
        return func(input, mat1, mat2, *rest, **kwargs)
    return lean.addmm(input, mat1, mat2, config=mode.config, **kwargs)


def _matmul(mode: compress_activations, func: Handler, input: Tensor, other: Tensor, **kwargs: Any) -> Tensor:
    is_weight = isinstance(other, torch.nn.Parameter) and other.requires_grad and other.dim() == 2
    if kwargs or not (is_weight and _is_dense(input) and input.dim() >= 2):
        return func(input, other, **kwargs)
    return lean.rmm_linear(input, other.t(), config=mode.config, shared=mode._shared)


def _relu(mode: compress_activations, func: Handler, input: Tensor, inplace: bool = False) -> Tensor:
    return lean.relu(input, inplace) if _is_dense(input) else func(input, inplace)


def _relu_method(mode: compress_activations, func: Handler, input: Tensor) -> Tensor:
    return lean.relu(input) if _is_dense(input) else func(input)


def _relu_(mode: compress_activations, func: Handler, input: Tensor) -> Tensor:
    return lean.relu(input, inplace=True) if _is_dense(input) else func(input)


def _leaky_relu(
    mode: compress_activations, func: Handler, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return (lean.leaky_relu if _is_dense(input) else func)(input, negative_slope, inplace)


def _dropout(
    mode: compress_activations,
    func: Handler,
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    return (lean.dropout if _is_dense(input) else func)(input, p, training, inplace)


def _batch_norm(
    mode: compress_activations,
    func: Handler,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    args = input, running_mean, running_var, weight, bias, training, momentum, eps
    return lean.batch_norm(*args, codec=mode.config.norm_codec) if _is_dense(input) else func(*args)


def _layer_norm(
    mode: compress_activations,
    func: Handler,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    args = input, normalized_shape, weight, bias, eps
    return lean.layer_norm(*args, codec=mode.config.norm_codec) if _is_dense(input) else func(*args)


def _gelu(mode: compress_activations, func: Handler, input: Tensor, *, approximate: str = "none") -> Tensor:
    if not _is_dense(input):
        return func(input, approximate=approximate)
    return lean.gelu(input, approximate, codec=mode.config.act_codec)


def _silu(mode: compress_activations, func: Handler, input: Tensor, inplace: bool = False) -> Tensor:
    return lean.silu(input, inplace, codec=mode.config.act_codec) if _is_dense(input) else func(input, inplace)


def _elu(mode: compress_activations, func: Handler, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    if not _is_dense(input):
        return func(input, alpha, inplace)
    return lean.elu(input, alpha, inplace, codec=mode.config.act_codec)


_HANDLERS: dict[Any, Handler] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.mm: _matmul,
    Tensor.mm: _matmul,
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
    F.dropout: _dropout,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.gelu: _gelu,
    F.silu: _silu,
    F.elu: _elu,
}
_OWN_MODULES = {f"rmm_gnn.functional.{name}" for name in ("activations", "dropout", "linear", "normalization")}
_CHECKPOINT_FILE = torch.utils.checkpoint.__file__
