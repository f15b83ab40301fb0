"""What a layer holds from one step to the next for ``importance_sampling``: the norms of its gradient's rows.

They are no parameter and no buffer: ``state_dict`` stays that of the layer which is replaced, and a model that is moved
to another device, or reads another number of rows, starts without them.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from rmm_gnn.config import RMMConfig
from rmm_gnn.sketches.sampled_rows import row_norms_of

# What forward reads, and what backward has written since.  Attributes that are rebound, not changed in place: whoever
# puts the attributes of a module back as they were, as ``memory_report`` does, puts these back too.
_READ, _WRITTEN = "_rmm_row_norms", "_rmm_next_row_norms"
# By what they are called where they are stored: "read" by the latest forward pass, "written" by its backward pass.
ATTRIBUTES = {"read": _READ, "written": _WRITTEN}


def are_held_for(config: RMMConfig, x: Tensor) -> bool:
    """Whether a layer with this config holds norms; not in code that is traced or captured, which has no place.

    A CUDA graph would read the norms that were there at its capture at every replay, also after they were freed.
    """
    return config.family.reads_row_norms and not torch.compiler.is_compiling() and not _is_captured(x)


def _is_captured(x: Tensor) -> bool:
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def of_the_step_before(layer: object, x: Tensor) -> Tensor | None:  # [*, N] -> [B]
    """Return the norms of the latest gradient of ``layer``'s output if it had the rows of ``x``, else None.

    A forward pass within a backward pass recomputes a checkpointed block.  It finds what the first pass found, also
    where the same layer has got a gradient in between, and so redraws the same rows.
    """
    held = layer.__dict__
    if _WRITTEN in held and torch._C._current_graph_task_id() == -1:  # no backward pass is running in this thread
        held[_READ] = held.pop(_WRITTEN)
    norms: Tensor | None = held.get(_READ)
    if norms is None or norms.device != x.device or norms.shape[0] != x.shape[:-1].numel():
        return None
    return norms


def note(layer: object, out: Tensor, workspace_bytes: int) -> None:  # [*, M]
    """Have backward write the norms of the rows of ``out``'s gradient into ``layer``: 2 bytes a row."""
    if not out.requires_grad:
        return
    # The graph holds the hook, and must not hold the layer.
    reference = weakref.ref(layer)

    def write(grad_output: Tensor) -> None:
        layer = reference()
        if layer is not None:
            rows = grad_output.detach().reshape(-1, grad_output.shape[-1])
            # Good to a part in 256, with the range of float32: drawing needs no more.
            layer.__dict__[_WRITTEN] = row_norms_of(rows, None, workspace_bytes).to(torch.bfloat16)

    out.register_hook(write)


def forget(layer: object) -> None:
    """Drop the norms, of a layer that is another one from here on."""
    for name in ATTRIBUTES.values():
        layer.__dict__.pop(name, None)
