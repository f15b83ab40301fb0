"""Everything autograd keeps, moved to the host until backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks


def offload(device: str) -> saved_tensors_hooks:
    """``torch.autograd.graph.save_on_cpu`` that leaves sparse tensors where they are.

    The adjacency is kept once for all layers, and ``save_on_cpu`` would copy it anew for each; into pinned memory it
    cannot copy the CSR layout at all.

    Args:
        device: Where the run takes place.  On CUDA host memory is pinned; on CPU nothing is moved or copied.

    Returns:
        A context for the forward pass.
    """
    hooks = save_on_cpu(pin_memory=torch.device(device).type == "cuda")

    def pack(tensor: Tensor) -> Any:
        return hooks.pack_hook(tensor) if tensor.layout == torch.strided else tensor

    def unpack(packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else hooks.unpack_hook(packed)

    return saved_tensors_hooks(pack, unpack)
