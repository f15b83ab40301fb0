"""The mode that puts handlers in the place of torch's functions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from traceback import walk_stack
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

import rmm_gnn.functional as lean
from rmm_gnn._validation import check_bool_tensor, check_maskable
from rmm_gnn.config import RMMConfig
from rmm_gnn.context.forward_pass import ForwardPass
from rmm_gnn.context.handlers import HANDLERS, Handler
from rmm_gnn.context.held import addmm_of_held, dropout_of_held, linear_of_held
from rmm_gnn.sharing import note_config

_CHECKPOINT_FILE = torch.utils.checkpoint.__file__
# The first pass over a block; the second one of the reentrant variant, and of the other.
_RUNS_A_BLOCK = ("checkpoint", "backward", "recompute_fn")
_OWN_FUNCTIONS = {getattr(lean, name) for name in lean.__all__}


class compress_activations(TorchFunctionMode):
    """While active, the functions a model calls keep little for backward; outputs stay what they are.

    ====================================================  =========================================================
    calls of                                              keep
    ====================================================  =========================================================
    ``F.linear`` with a weight that needs a gradient;     a sketch of the input (``rmm_linear``, ``addmm``)
    ``torch.addmm``, ``mm``, ``matmul``, ``@`` with a
    Parameter, or a view of one, on the right
    ``F.relu``, ``torch.relu``, ``Tensor.relu``,          one bit for every entry
    ``F.leaky_relu`` and their in-place forms
    ``F.dropout``, ``torch.dropout``                      a seed
    ``batch_norm``, ``layer_norm``, ``rms_norm`` of       the normalised input in ``config.norm_codec``; with a
    ``F`` or ``torch``                                    ``config.norm_rate``, ``batch_norm`` a sketch of it
    ``F.gelu``, ``F.silu``, ``F.elu``                     the derivative in ``config.act_codec``
    ====================================================  =========================================================

    Modules of PyTorch and PyTorch Geometric call these, so stock ``GCN2Conv``, ``GCNConv``, ``SAGEConv``, ``GATConv``
    are reached.  Linear layers, converted ones too, that read one tensor under one config share one sketch of it, each
    of them once: where a layer reads it again, as in the next step, S is a fresh one; ``addmm`` keeps one of its own.
    ``importance_sampling`` is ``norm_sampling`` for functions, which have no layer to hold norms for them.
    A product that reads what a fused kernel of ``scaled_dot_product_attention`` keeps, its output, keeps nothing new
    and is exact; attention itself is left to torch.
    Other functions, and calls that torch would refuse, pass through; ``memory_report`` lists what they keep.  Among
    them is what composite functions such as ``F.multi_head_attention_forward`` call within themselves: a mode does not
    see that.  Of nested modes the inner one decides.

    The forward pass has to run inside, backward may run inside or outside.  A mode is not active while activation
    checkpointing recomputes a block, so enter it inside the checkpointed function, or through ``context_fn`` of
    ``torch.utils.checkpoint.checkpoint(..., use_reentrant=False)``; a checkpointed block that starts within the mode
    raises an error, since its second pass would not be the first one.  Compiled functions may be called within
    the mode or enter it themselves; there, layers do not share sketches.

    A mode belongs to the thread that enters it.  It cannot know whether a module is in evaluation mode: calls without a
    ``training`` argument, linear ones among them, are compressed wherever a gradient is needed, also in ``eval()``, and
    those that sketch or round draw a seed in any case.

    *Inputs that live on anyway.*  The features of a full-batch graph, or the batch that a loop holds, take their memory
    whether or not a layer keeps them.  Name them as ``held``: the products in the first row of the table, and calls of
    ``rmm_linear`` and ``addmm`` of this library, are exact where they read one, and keep a reference; where they read
    dropout of one, they keep a reference and a seed, from which backward drops out again.  Neither brings noise, nor a
    byte but the seed; under autocast, as in any product, a low-precision copy of the weight if the tensor needs a
    gradient.  Changing a held tensor in place between a product and backward raises an error.  Products of what was
    changed in place after dropout, of a part of a held tensor, of dropout under a ``p`` that is a tensor, or of dropout
    made before this entry are sketched; ``shared_input_linear`` and ``anchored_linear`` keep what they keep elsewhere.

    *Padding.*  With a ``row_mask``, linear layers sketch the rows that it marks, and no others: those whose input has
    leading dimensions of exactly its shape.  An input [batch * sequence, N] is not taken for a flattened
    [batch, sequence, N], since nothing says that it is one: it is sketched whole, and so is what ``addmm`` reads.
    Every such layer has to have a gradient of zero in the other rows; ``rmm_linear`` says more.

    Args:
        config: What to keep; ``RMMConfig()`` if None.
        held: Tensors that the caller keeps until backward in any case; None stands for none.  Objects that are not
            strided tensors, such as sparse matrices, may be among them and are passed over, and so are tensors made in
            inference mode.  Compiled code does not look at them.
        row_mask: bool, True for the rows to sketch, such as [batch, sequence] for inputs [batch, sequence, N]; None for
            all.  It must not change in place before backward.

    Raises:
        TypeError: If ``config`` is not an ``RMMConfig``, ``held`` is no sequence, or ``row_mask`` is not one of bools.
        ValueError: If there is a ``row_mask`` and the family needs a grid of rows; in the forward pass, if the mask is
            on another device than an input.
        RuntimeError: In the forward pass, if ``torch.utils.checkpoint`` starts within the mode.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> with compress_activations(RMMConfig(rate=0.1)):
        ...     loss = model(torch.randn(100, 8)).square().mean()
        >>> loss.backward()
    """

    def __init__(
        self,
        config: RMMConfig | None = None,
        *,
        held: Sequence[Any] | None = None,
        row_mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        if config is not None and not isinstance(config, RMMConfig):
            raise TypeError(f"'config' must be an RMMConfig (got {type(config).__name__}). Write RMMConfig(rate=0.1).")
        if isinstance(held, Tensor) or not isinstance(held, Sequence | None):
            raise TypeError(f"'held' must be a sequence of tensors (got {type(held).__name__}). Write held=(x,).")
        self.config = RMMConfig() if config is None else config
        self.held = tuple(x for x in held or () if isinstance(x, Tensor) and x.layout == torch.strided)
        self.row_mask = None if row_mask is None else check_bool_tensor("row_mask", row_mask)
        if row_mask is not None:
            check_maskable(self.config.family.name, on_a_grid=self.config.family.reads_shape)
        self._passes: list[ForwardPass] = []

    def __enter__(self) -> compress_activations:
        # Nothing here may break the graph: dynamo would then run the block only in part and return the wrong value.
        if not torch.compiler.is_compiling():
            self._passes.append(ForwardPass(self.config, _count_checkpoints(), self.held, self.row_mask))
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        if not torch.compiler.is_compiling():
            self._passes.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = HANDLERS.get(func)
        if func in _OWN_FUNCTIONS:
            self._check_checkpoints()
            with torch._C.DisableTorchFunction():
                own = _OWN_HANDLERS.get(func)
                if own is not None and _is_plain(args, kwargs):
                    return own(self._current(), *args, **kwargs)
                return func(*args, **kwargs)
        # Subclasses of Tensor have a say of their own in what a function means.
        if handler is not None and _is_plain(args, kwargs):
            self._check_checkpoints()
            # Without this an outer mode would see, and compress, what the handler calls.
            with torch._C.DisableTorchFunction():
                try:
                    out = handler(self._current(), *args, **kwargs)
                except TypeError as error:
                    if error.__traceback__ is not None and error.__traceback__.tb_next is not None:
                        raise
                    out = NotImplemented  # raised by the call itself: not the arguments that the handler knows
            if out is not NotImplemented:
                return out
        return func(*args, **kwargs)

    def _current(self) -> ForwardPass:
        if self._passes:
            return self._passes[-1]
        # The mode was entered in code that torch.compile traces: no seeds of its own, which would break the graph.
        traced = ForwardPass(self.config, 0, row_mask=self.row_mask)
        traced.checkpoints = _count_checkpoints()
        return traced

    def _check_checkpoints(self) -> None:
        if _count_checkpoints() > self._current().checkpoints:
            raise RuntimeError(
                "compress_activations must be entered inside a checkpointed function, or through context_fn (got "
                "torch.utils.checkpoint called within it). It is not active while the block is recomputed, and "
                "dropout would then use another mask: write `with compress_activations(config):` in the function."
            )


def _rmm_linear(this: ForwardPass, x: Tensor, weight: Tensor, bias: Tensor | None = None, **kwargs: Any) -> Tensor:
    if this.held is not None and _needs_gradient(weight):
        out = linear_of_held(this.held, x, weight, bias)
        if out is not None:
            return out
    if kwargs.get("shared") is None and isinstance(x, Tensor) and isinstance(weight, Tensor):
        kwargs["shared"] = this.sketches.of(x, weight)
    if kwargs.get("row_mask") is not None or not isinstance(x, Tensor) or this.row_mask_for(x) is None:
        return lean.rmm_linear(x, weight, bias, **kwargs)
    kwargs["row_mask"] = this.row_mask_for(x)
    return note_config(lean.rmm_linear(x, weight, bias, **kwargs), None, kwargs["row_mask"])


def _addmm(
    this: ForwardPass, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1, **kwargs: Any
) -> Tensor:
    if this.held is not None and _needs_gradient(mat2):
        out = addmm_of_held(this.held, input, mat1, mat2, beta, alpha)
        if out is not None:
            return out
    return lean.addmm(input, mat1, mat2, beta=beta, alpha=alpha, **kwargs)


def _dropout(this: ForwardPass, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if this.held is not None and not kwargs.keys() & {"seed"}:
        out = dropout_of_held(this.held, x, *args, **kwargs)
        if out is not None:
            return out
    return lean.dropout(x, *args, **kwargs)


def _needs_gradient(weight: Any) -> bool:
    return isinstance(weight, Tensor) and weight.requires_grad


_OWN_HANDLERS: dict[Any, Handler] = {lean.rmm_linear: _rmm_linear, lean.addmm: _addmm, lean.dropout: _dropout}


@torch.compiler.assume_constant_result
def _count_checkpoints() -> int:
    """Count the checkpointed blocks that are running, for the first time or again; in traced code, while traced."""
    codes = [frame.f_code for frame, _ in walk_stack(sys._getframe())]
    return sum(code.co_filename == _CHECKPOINT_FILE and code.co_name in _RUNS_A_BLOCK for code in codes)


def _is_plain(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return all(
        type(value) in (Tensor, torch.nn.Parameter) for value in (*args, *kwargs.values()) if isinstance(value, Tensor)
    )
