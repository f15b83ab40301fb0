"""Training in fp32, or with automatic casts to bf16 or fp16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("fp32", "bf16", "fp16")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """The casts of the forward pass and, for fp16, the scale of the loss."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._dtype = _DTYPES.get(name)
        self._device = device.type
        self._scaler = torch.amp.GradScaler(device.type) if name == "fp16" else None

    def casts(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device, self._dtype)

    @property
    def loss_scale(self) -> float:
        """By what the gradients of the next backward pass are multiplied."""
        return 1.0 if self._scaler is None else self._scaler.get_scale()

    def backward(self, loss: Tensor) -> None:
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._scaler is None:
            optimizer.step()
        else:
            self._scaler.step(optimizer)  # passed over where a gradient is not finite
            self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        """Of the loss's scale."""
        return {} if self._scaler is None else self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        if self._scaler is not None:
            self._scaler.load_state_dict(state)
