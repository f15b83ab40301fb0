"""Which rows of an input are sketched: how many a mask marks, which ones, and whether the others have a gradient."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.weak import WeakIdKeyDictionary

# Stands for the number of marked rows in traced code, which cannot read it.
UNKNOWN = -1

# Version and count of masks on a GPU, where counting waits for it, for as long as the masks live.
_COUNTS: WeakIdKeyDictionary = WeakIdKeyDictionary()

# How many checks are active.  A plain number, which torch.compile guards: it has to trace anew where this changes.
_checks = 0
_LOCK = threading.Lock()


class CurrentRowMask:
    """The rows that the layers of a model sketch, for one forward pass of it; whoever makes the mask sets ``mask``.

    One object serves all layers.  It keeps its mask until it is given another one: a checkpointed block that backward
    recomputes finds what the first pass found.  A copy, or what is unpickled, is a new one without a mask, and of a
    copied model all layers have the same new one.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None

    def __reduce__(self) -> tuple[type[CurrentRowMask], tuple[()]]:
        return type(self), ()

    def of(self, x: Tensor) -> Tensor | None:
        """Return the mask if it has a number for each row of ``x`` [*, N], in the same shape; None elsewhere."""
        mask = self.mask
        return mask if mask is not None and mask.shape == x.shape[:-1] and mask.device == x.device else None


def remove_mask_hooks(module: Module) -> None:
    """Take forward pre-hooks that set a ``CurrentRowMask``, and forward hooks that are its methods, off ``module``."""
    hooks: dict[int, Any] = module._forward_pre_hooks
    for key in [key for key, hook in hooks.items() if isinstance(hook, CurrentRowMask)]:
        del hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    after: dict[int, Any] = module._forward_hooks
    for key in [key for key, hook in after.items() if isinstance(getattr(hook, "__self__", None), CurrentRowMask)]:
        del after[key]


@contextmanager
def check_row_masks() -> Iterator[None]:
    """Have backward check that rows which a ``row_mask`` leaves out have no gradient; changes no number.

    Products that run inside are checked in backward, wherever that runs: a gradient of a masked row that is not zero
    would be missing in the weight gradient.  It costs a pass over the gradients of the masked rows, and waits for the
    GPU at every layer.  It is active in all threads, since replicas of a model may run in threads of their own.

    Raises:
        RuntimeError: In backward, if ``grad_output`` is not zero, or not a number, in a masked row.

    Example:
        >>> from rmm_gnn import RMMConfig, rmm_linear
        >>> x, weight = torch.randn(4, 8), torch.randn(2, 8, requires_grad=True)
        >>> with check_row_masks():
        ...     out = rmm_linear(x, weight, config=RMMConfig(), row_mask=torch.tensor([True, True, True, False]))
        >>> out[:3].sum().backward()
    """
    global _checks
    with _LOCK:
        _checks += 1
    try:
        yield
    finally:
        with _LOCK:
            _checks -= 1


def masks_are_checked() -> bool:
    """Whether ``check_row_masks`` is active."""
    return _checks > 0


def count_rows(mask: Tensor) -> int:  # [*]
    """Return how many rows are marked.  On a GPU this waits for it, once for a mask that is not changed."""
    if not mask.is_cuda or mask.is_inference():
        return int(mask.sum())
    version, count = _COUNTS.get(mask, (None, 0))
    if version != mask._version:
        count = int(mask.sum())
        _COUNTS[mask] = mask._version, count
    return count


def row_numbers(mask: Tensor, num_rows: int) -> Tensor:  # [*] -> [B'], int32, or int64 from 2^31 rows on
    """Return the numbers of the ``num_rows`` marked rows, without waiting for a GPU; needs 24 bytes a row of the mask.

    They are counted where ``num_rows`` is ``UNKNOWN``.  Rows are numbered in the order in which an input with the
    leading dimensions of the mask is flattened.
    """
    num_rows = count_rows(mask) if num_rows == UNKNOWN else num_rows
    marks = mask.reshape(-1)
    dtype = torch.int32 if marks.shape[0] < 2**31 else torch.int64
    places = marks.cumsum(0).sub_(1)
    out = torch.empty(num_rows + 1, dtype=dtype, device=mask.device)  # the rows left out go to the last place
    out.scatter_(0, torch.where(marks, places, num_rows), torch.arange(marks.shape[0], dtype=dtype, device=mask.device))
    return out[:num_rows]


def check_masked_rows(grad_output: Tensor, mask: Tensor, workspace_bytes: int) -> None:  # [B, M], [*]
    """Check that the gradient is zero in every row that ``mask`` leaves out.

    Raises:
        RuntimeError: If it is not; the message has the number of such rows and the largest norm.
    """
    left_out = mask.reshape(-1).logical_not().nonzero().squeeze(1)
    if left_out.shape[0] == 0:
        return
    worst = grad_output.new_zeros((), dtype=torch.float64)
    count = 0
    height = max(1, workspace_bytes // max(1, grad_output.shape[1] * (8 + grad_output.element_size())))
    for rows in left_out.split(height):
        norms = torch.linalg.vector_norm(grad_output.index_select(0, rows).double(), dim=1)
        count += int((norms != 0).sum())
        worst = torch.maximum(worst, norms.amax())  # a nan stays
    if count:
        raise RuntimeError(
            f"'row_mask' must mark every row whose output has a gradient (got {count} of {left_out.shape[0]} masked "
            f"rows with one, the largest of norm {float(worst):.3g}, in a layer with {grad_output.shape[1]} outputs). "
            "The weight gradient lacks them: mask these rows in the loss, too, or leave 'row_mask' out of this layer."
        )
