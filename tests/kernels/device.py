"""Where the kernels' tests run: on a GPU where there is one, interpreted on the CPU elsewhere."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def far_apart(rows: int, columns: int, dtype: torch.dtype, device: torch.device = DEVICE) -> torch.Tensor:
    """A matrix whose last row begins more than 2^31 elements after its first; what lies between is never touched."""
    stride = 2**31 // (rows - 1) + 64
    memory = torch.empty((rows - 1) * stride + columns, dtype=dtype, device=device)
    return memory.as_strided((rows, columns), (stride, 1)).copy_(torch.randn(rows, columns))
