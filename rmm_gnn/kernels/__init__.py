"""What has more than one implementation, and the choice between them."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from rmm_gnn._validation import check_choice
from rmm_gnn.kernels import native, reference

BACKENDS = ("auto", "torch", "native", "scatter", "triton")
_TRITON_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_backend(backend: str) -> str:
    """Return ``backend`` if it is known and installed.

    Raises:
        ValueError: If the name is unknown.
        ImportError: If what ``backend`` is the name of is not installed.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "native" and not native.is_built():
        raise ImportError(native.NOT_BUILT)
    if backend == "scatter" and importlib.util.find_spec("torch_scatter") is None:
        raise ImportError(
            "backend 'scatter' needs torch-scatter. Run scripts/install_scatter.sh, or use backend='auto'."
        )
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        raise ImportError(
            "backend 'triton' needs triton. CUDA builds of torch bring it: install one, or use backend='auto'."
        )
    return backend


def resolve(backend: str, matrix: Tensor, dtype: torch.dtype | None = None) -> str:
    """Name the implementation that ``backend`` stands for: ``"auto"`` is the fastest one measured for such a matrix.

    That is ``"native"`` on the CPU, for the types that it takes and where it is built, ``"triton"`` on GPUs, where it
    is installed, and ``"torch"`` elsewhere.

    Args:
        backend: One of ``BACKENDS``.
        matrix: What is read.
        dtype: The type that counts, where it is not that of ``matrix``.
    """
    if backend != "auto":
        return backend
    if native.is_built() and native.takes(matrix, dtype):
        return "native"
    return "triton" if _triton_takes(matrix, dtype) else "torch"


def _triton_takes(matrix: Tensor, dtype: torch.dtype | None) -> bool:
    """Whether kernels in Triton can read ``matrix``, or what has ``dtype``: a plain tensor on a GPU they run on."""
    return (
        matrix.is_cuda
        and (dtype or matrix.dtype) in _TRITON_TYPES
        and type(matrix) in (Tensor, Parameter)
        and not (matrix.requires_grad and torch.is_grad_enabled())
        and not torch._C._functorch.is_functorch_wrapped_tensor(matrix)
        and _triton_builds_for(matrix.device)
    )


@cache
def _triton_builds_for(device: torch.device) -> bool:
    # 8.0 is the least that Triton supports; builds of torch for AMD's GPUs count otherwise, and none was tried.
    there = importlib.util.find_spec("triton") is not None and torch.version.cuda is not None
    return there and torch.cuda.get_device_capability(device) >= (8, 0)


def implementation(operation: str, backend: str, matrix: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Return the module that does ``operation`` on what ``backend`` stands for, or None: plain torch does it.

    Args:
        operation: What the modules are named after: "activations", "batch_norm" or "codes".
        backend: One of ``BACKENDS``; one that has no module for the operation leaves it to plain torch.
        matrix: What is read.
        dtype: The type that counts, where it is not that of ``matrix``.

    Raises:
        ValueError: If ``backend`` is unknown.
        ImportError: If what ``backend`` needs is not installed.
    """
    if backend != "auto":
        check_backend(backend)
    name = resolve(backend, matrix, dtype)
    return import_module(f"rmm_gnn.kernels.{operation}_{name}") if name in ("native", "triton") else None


def bucket_sum(matrix: Tensor, rows: Tensor, signs: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """Sum signed rows of ``matrix`` bucket by bucket by torch-scatter, or as ``reference.bucket_sum`` does."""
    if backend == "scatter":
        from rmm_gnn.kernels import scatter

        return scatter.bucket_sum(matrix, rows, signs, offsets)
    return reference.bucket_sum(matrix, rows, signs, offsets)
