"""What the launches of Triton kernels share."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def is_interpreted(kernel: Any) -> bool:
    """Whether Triton was told, by TRITON_INTERPRET=1, to run its kernels in Python, on tensors of any device."""
    return not isinstance(kernel, triton.runtime.JITFunction)


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Launch on the GPU where ``tensor`` is: Triton takes the current one."""
    return torch.cuda.device_of(tensor)


def check_device(kernel: Any, tensor: Tensor) -> None:
    """Check that ``kernel`` can read ``tensor``.

    Raises:
        ValueError: If it is not on a GPU and kernels are not interpreted.
    """
    if not tensor.is_cuda and not is_interpreted(kernel):
        raise ValueError(
            f"'backend' must be one that runs on {tensor.device.type} (got 'triton'). Use backend='auto', or a GPU."
        )


def index_dtype(size: int) -> tl.dtype:
    """Return the type that holds the numbers below ``size``: int32 where it can, which is several times as fast."""
    return tl.int32 if size < 2**31 else tl.int64


def tile_entries(kernel: Any) -> int:
    """Return how many entries a program should hold: what fits in registers; more where each operation is Python's."""
    return 2**18 if is_interpreted(kernel) else 2**12
