"""Whether fused attention keeps its output, so that the product which reads it need keep nothing."""

from __future__ import annotations

import torch
from torch import Tensor

# Nodes of the kernels that read their own output in backward.  The composite ("math") path has none of these: it keeps
# the attention weights instead.
_KERNELS = frozenset(
    f"ScaledDotProduct{kernel}Backward0"
    for kernel in (
        "FlashAttentionForCpu",
        "FlashAttention",
        "EfficientAttention",
        "CudnnAttention",
        "FusedAttentionOverrideable",
    )
)
# Nodes of views: the result lies in the memory of the argument.
_VIEWS = frozenset(
    f"{view}Backward0" for view in ("Transpose", "Permute", "View", "ReshapeAlias", "Alias", "Unsqueeze", "Squeeze")
)


def is_kept_by_attention(x: Tensor) -> bool:
    """Whether ``x`` lies in memory that a fused kernel of ``scaled_dot_product_attention`` keeps: its output, reshaped.

    A product that keeps x then keeps nothing new, and is exact; a sketch beside it would be kept for nothing.  The
    graph tells: from x back to the kernel it has views only.  A copy in between, as of a transposed output that is not
    contiguous, ends the search, and so does ``torch.compile``, which has no graph yet.  Attention that a checkpoint
    recomputes while the product stays outside of the checkpoint is taken for one that keeps its output; checkpoint
    both.

    Args:
        x: Any tensor.

    Returns:
        True where keeping x is free.

    Example:
        >>> q = torch.randn(2, 16, 4, 8, requires_grad=True).transpose(1, 2)
        >>> heads = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        >>> is_kept_by_attention(heads.transpose(1, 2).reshape(2, 16, 32))
        True
    """
    if torch.compiler.is_compiling() or not isinstance(x, Tensor):
        return False
    node = x.grad_fn
    while node is not None and node.name() in _VIEWS:
        node = node.next_functions[0][0]
    return node is not None and node.name() in _KERNELS
