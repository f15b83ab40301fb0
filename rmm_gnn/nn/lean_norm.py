"""Normalisation that keeps its normalised input, or a sketch of it, in a codec: drop-ins for PyTorch's modules."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

import rmm_gnn.functional as lean
from rmm_gnn.nn.lean import LeanModule


class _LeanBatchNorm(LeanModule, _BatchNorm):
    """What the batch normalisations of all dimensions share."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches so far
                momentum = 1.0 / float(self.num_batches_tracked)
        return lean.batch_norm(
            input,
            self.running_mean if self.track_running_stats else None,
            self.running_var if self.track_running_stats else None,
            self.weight,
            self.bias,
            True,
            momentum,
            self.eps,
            codec=self.config.norm_codec,
            rate=self.config.norm_rate,
            backend=self.config.backend,
        )

    def extra_repr(self) -> str:
        rate = "" if self.config.norm_rate == 1.0 else f", norm_rate={self.config.norm_rate:g}"
        return f"{super().extra_repr()}, norm_codec={self.config.norm_codec!r}{rate}"


class LeanBatchNorm1d(_LeanBatchNorm, torch.nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` that keeps its normalised input, or less: see ``functional.batch_norm``."""


class LeanBatchNorm2d(_LeanBatchNorm, torch.nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` that keeps its normalised input, or less: see ``functional.batch_norm``."""


class LeanBatchNorm3d(_LeanBatchNorm, torch.nn.BatchNorm3d):
    """``torch.nn.BatchNorm3d`` that keeps its normalised input, or less: see ``functional.batch_norm``."""


class LeanLayerNorm(LeanModule, torch.nn.LayerNorm):
    """``torch.nn.LayerNorm`` that keeps its normalised input in a codec; see ``functional.layer_norm``."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        return lean.layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            codec=self.config.norm_codec,
            backend=self.config.backend,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm_codec={self.config.norm_codec!r}"


class LeanRMSNorm(LeanModule, torch.nn.RMSNorm):
    """``torch.nn.RMSNorm`` that keeps its normalised input in a codec; see ``functional.rms_norm``."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        return lean.rms_norm(
            x, self.normalized_shape, self.weight, self.eps, codec=self.config.norm_codec, backend=self.config.backend
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, norm_codec={self.config.norm_codec!r}"
