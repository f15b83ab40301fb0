"""A linear map whose input many layers share: autocast's converted copy of it is made, used and dropped."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward


class SharedInputLinear(torch.autograd.Function):
    """X W^T computed in ``dtype``; keeps X and W as they came and converts them again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.dtypes = x.dtype, weight.dtype
        return F.linear(x.to(dtype), weight.to(dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        refuse_double_backward("shared_input_linear")
        (grad_output,) = grad_outputs
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        with torch.autocast(grad_output.device.type, enabled=False):
            if weight is not None:
                grad_x = (grad_output @ weight.to(grad_output.dtype)).to(ctx.dtypes[0])
            if x is not None:
                grad_weight = (grad_output.flatten(0, -2).T @ x.to(grad_output.dtype).flatten(0, -2)).to(ctx.dtypes[1])
        return grad_x, grad_weight, None
