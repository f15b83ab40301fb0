"""A linear map whose input many layers share: converted and scaled copies are made, used and dropped."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rmm_gnn.autograd.double_backward import refuse_double_backward


class SharedInputLinear(torch.autograd.Function):
    """X W^T times ``scale``, formed in ``dtype``; keeps X and W as they came, converts and scales again in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if needs_weight else None, weight if needs_x else None)
        ctx.dtypes, ctx.scale = (x.dtype, weight.dtype), scale
        return F.linear(x.to(dtype), (scale * weight).to(dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        refuse_double_backward("shared_input_linear")
        (grad_output,) = grad_outputs
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        with torch.autocast(grad_output.device.type, enabled=False):
            if weight is not None:
                grad_x = (grad_output @ (ctx.scale * weight).to(grad_output.dtype)).to(ctx.dtypes[0])
            if x is not None:
                product = grad_output.flatten(0, -2).T @ x.to(grad_output.dtype).flatten(0, -2)
                grad_weight = product.mul_(ctx.scale).to(ctx.dtypes[1])
        return grad_x, grad_weight, None, None
