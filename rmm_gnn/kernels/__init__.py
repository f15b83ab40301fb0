"""What has more than one implementation, and the choice between them."""

from __future__ import annotations

import importlib.util

from torch import Tensor

from rmm_gnn._validation import check_choice
from rmm_gnn.kernels import reference

BACKENDS = ("auto", "torch", "scatter", "triton")


def check_backend(backend: str) -> str:
    """Return ``backend`` if it is known and can run here.

    Raises:
        ValueError: If the name is unknown.
        ImportError: If what ``backend`` is the name of is not installed.
    """
    check_choice("backend", backend, BACKENDS)
    if backend == "scatter" and importlib.util.find_spec("torch_scatter") is None:
        raise ImportError(
            "backend 'scatter' needs torch-scatter. Run scripts/install_scatter.sh, or use backend='auto'."
        )
    if backend == "triton" and importlib.util.find_spec("triton") is None:
        raise ImportError(
            "backend 'triton' needs triton. CUDA builds of torch bring it: install one, or use backend='auto'."
        )
    return backend


def resolve(backend: str) -> str:
    """Name the implementation that ``backend`` stands for: ``"auto"`` is ``"torch"``, the fastest measured so far."""
    return "torch" if backend == "auto" else backend


def bucket_sum(matrix: Tensor, rows: Tensor, signs: Tensor, offsets: Tensor, backend: str) -> Tensor:
    """Sum signed rows of ``matrix`` bucket by bucket with the chosen implementation; see ``reference.bucket_sum``."""
    if resolve(backend) == "scatter":
        from rmm_gnn.kernels import scatter

        return scatter.bucket_sum(matrix, rows, signs, offsets)
    return reference.bucket_sum(matrix, rows, signs, offsets)
