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
from rmm_gnn.functional._calling import autocast_dtype
from rmm_gnn.seeding import draw_seed
from rmm_gnn.sharing import KeptOnce

Handler = Callable[..., Any]


class _Pass:
    """What belongs to one time that a mode is entered.

    Attributes:
        shared: The sketches that linear layers have in common.
        checkpoints: How many checkpointed blocks were running on entry.
    """

    def __init__(self, checkpoints: int = 0) -> None:
        self.shared = KeptOnce()
        self.checkpoints = checkpoints
        self._start = int(draw_seed(torch.empty(0))) if checkpoints else None
        self._generators: dict[torch.device, torch.Generator] = {}

    def seed(self, like: Tensor) -> Tensor | None:
        """Return the next seed of a sketch in a checkpointed block; elsewhere None, and the product draws its own.

        The first pass over a block may run without grad mode, where a weight that is computed from others does not show
        that it needs a gradient, so which products draw is not the same in both passes.  They must not draw from the
        generator that dropout draws from.
        """
        if self._start is None:
            return None
        if like.device not in self._generators:
            self._generators[like.device] = torch.Generator(like.device).manual_seed(self._start)
        return draw_seed(like, self._generators[like.device])


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
        self._passes: list[_Pass] = []

    def __enter__(self) -> compress_activations:
        self._passes.append(_Pass(_count_checkpoints(sys._getframe(1))))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._passes.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if func in _OWN_FUNCTIONS:
            self._check_checkpoints()
            if func is lean.rmm_linear:
                kwargs = {"shared": self._passes[-1].shared, **kwargs}
            with torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        # Subclasses of Tensor have a say of their own in what a function means.
        if handler is not None and _is_plain(args, kwargs):
            self._check_checkpoints()
            # Without this an outer mode would see, and compress, what the handler calls.
            with torch._C.DisableTorchFunction():
                try:
                    out = handler(self, *args, **kwargs)
                except TypeError as error:
                    if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                        raise
                    out = NotImplemented  # raised by the call itself: not the arguments that the handler knows
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)

    def _check_checkpoints(self) -> None:
        if _count_checkpoints(sys._getframe(2)) > self._passes[-1].checkpoints:
            raise RuntimeError(
                "compress_activations must be entered inside a checkpointed function, or through context_fn (got "
                "torch.utils.checkpoint called within it). It is not active while the block is recomputed, and "
                "dropout would then use another mask: write `with compress_activations(config):` in the function."
            )


def _count_checkpoints(frame: FrameType | None) -> int:
    """Count the checkpointed blocks that are running, for the first time or again, on the stack below ``frame``."""
    count = 0
    while frame is not None:
        code = frame.f_code
        if code.co_filename == _CHECKPOINT_FILE and code.co_name in _RUNS_A_BLOCK:
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


def _linear(mode: compress_activations, input: Tensor, weight: Tensor, bias: Any = None) -> Tensor:
    if not (_fit(input, weight, bias) and weight.requires_grad):
        return NotImplemented
    this = mode._passes[-1]
    return lean.rmm_linear(input, weight, bias, config=mode.config, seed=this.seed(input), shared=this.shared)


def _matmul(mode: compress_activations, input: Tensor, other: Tensor) -> Tensor:
    return _linear(mode, input, other.t()) if _is_weight(other) else NotImplemented


def _mm(mode: compress_activations, input: Tensor, mat2: Tensor) -> Tensor:
    return _matmul(mode, input, mat2) if input.dim() == 2 else NotImplemented


def _addmm(
    mode: compress_activations, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    if not (_is_weight(mat2) and _is_dense(input) and _fit(mat1, mat2.t()) and mat1.dim() == 2):
        return NotImplemented
    seed = mode._passes[-1].seed(mat1)
    return lean.addmm(input, mat1, mat2, beta=beta, alpha=alpha, config=mode.config, seed=seed)


def _relu(mode: compress_activations, input: Tensor, inplace: bool = False) -> Tensor:
    return lean.relu(input, inplace) if _is_dense(input) else NotImplemented


def _relu_method(mode: compress_activations, input: Tensor) -> Tensor:
    return _relu(mode, input)


def _relu_(mode: compress_activations, input: Tensor) -> Tensor:
    return _relu(mode, input, True)


def _leaky_relu(
    mode: compress_activations, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Tensor:
    return lean.leaky_relu(input, negative_slope, inplace) if _is_dense(input) else NotImplemented


def _leaky_relu_(mode: compress_activations, input: Tensor, negative_slope: float = 0.01) -> Tensor:
    return _leaky_relu(mode, input, negative_slope, True)


def _dropout(
    mode: compress_activations, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    known = _is_dense(input) and type(p) in (int, float) and 0 <= p <= 1
    return lean.dropout(input, p, training, inplace) if known else NotImplemented


def _batch_norm(
    mode: compress_activations,
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
    return lean.batch_norm(*args, codec=mode.config.norm_codec)


def _layer_norm(
    mode: compress_activations,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    if not _is_dense(input):
        return NotImplemented
    return lean.layer_norm(input, normalized_shape, weight, bias, eps, codec=mode.config.norm_codec)


def _gelu(mode: compress_activations, input: Tensor, *, approximate: str = "none") -> Tensor:
    known = _is_dense(input) and approximate in ("none", "tanh")
    return lean.gelu(input, approximate, codec=mode.config.act_codec) if known else NotImplemented


def _silu(mode: compress_activations, input: Tensor, inplace: bool = False) -> Tensor:
    return lean.silu(input, inplace, codec=mode.config.act_codec) if _is_dense(input) else NotImplemented


def _elu(mode: compress_activations, input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    return lean.elu(input, alpha, inplace, codec=mode.config.act_codec) if _is_dense(input) else NotImplemented


def _elu_(mode: compress_activations, input: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(mode, input, alpha, True)


_HANDLERS: dict[Any, Handler] = {
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
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.gelu: _gelu,
    F.silu: _silu,
    F.elu: _elu,
    F.elu_: _elu_,
}
_OWN_FUNCTIONS = {getattr(lean, name) for name in lean.__all__}
_CHECKPOINT_FILE = torch.utils.checkpoint.__file__
# The first pass over a block; the second one of the reentrant variant, and of the other.
_RUNS_A_BLOCK = ("checkpoint", "backward", "recompute_fn")
