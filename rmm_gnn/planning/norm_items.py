"""What a plan decides about normalisation layers: codec and share of rows, for each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import log, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from rmm_gnn.autograd.sketched_norm import kept_rows
from rmm_gnn.codecs import get_codec
from rmm_gnn.config import RMMConfig
from rmm_gnn.nn import LeanBatchNorm1d, LeanBatchNorm2d, LeanBatchNorm3d, LeanLayerNorm, LeanRMSNorm
from rmm_gnn.planning.choose import Cost
from rmm_gnn.sketches import CountSketch

NORMS = (LeanBatchNorm1d, LeanBatchNorm2d, LeanBatchNorm3d, LeanLayerNorm, LeanRMSNorm)
_CODECS = ("fp32", "int8", "int4", "int2", "int1")
# What a sketch may be stored in: finer codes take the bytes of more rows, which are worth more.
_SKETCH_CODECS = ("int4", "int2", "int1")
_RATES = tuple(round(10 ** (-exponent / 20), 4) for exponent in range(1, 41))
# Where the rounding of a sketch is measured; at another rate the nearest of them stands for it.
_ROUNDING_RATES = (0.8, 0.4, 0.2, 0.1, 0.05, 0.02)
# Rows of the normalised input on which the variances of codes are taken.
_SAMPLED_ROWS = 4096
# In this code of all rows the noise of a layer is measured; from it follows that of the others.
REFERENCE_CODEC = "int1"


@dataclass(frozen=True, eq=False)
class SeenNorm:
    """A normalisation layer as one forward pass showed it.

    Attributes:
        calls: How often it ran, each time on as many rows.
        rows: Rows of what is kept.
        columns: Columns of what is kept.
        dtype: Type of its input.
        sample: Some rows of the normalised input [R, columns], or all.
        sketches: Whether it can keep a sketch of the rows.
    """

    calls: int
    rows: int
    columns: int
    dtype: torch.dtype
    sample: Tensor
    sketches: bool
    _roundings: dict[tuple[Any, float], float] = field(default_factory=dict)

    def saved_bytes(self, codec: Any, rate: float) -> int:
        """Bytes of the code, and of the seed of a sketch."""
        size = kept_rows(rate, self.rows)
        once = get_codec(codec).num_bytes(size, self.columns, self.dtype) + (8 if rate < 1.0 else 0)
        return self.calls * once

    def variance(self, codec: Any, rate: float) -> float:
        """Variance of an entry of the normalised input as it is read back, on average over the entries."""
        size = kept_rows(rate, self.rows)
        if size == self.rows:
            return float(get_codec(codec).variance(self.sample).mean())
        from_sketch = (self.rows - size) / ((self.rows - 1) * size) * self.rows  # p |x_j|^2, see sketched_norm
        return (
            from_sketch + self._rounding(codec, min(_ROUNDING_RATES, key=lambda other: abs(log(other / rate)))) / rate
        )

    def _rounding(self, codec: Any, rate: float) -> float:
        """Variance of the rounding of a sketch over the size of its entries: much the same for all rates."""
        key = codec, rate
        if key not in self._roundings:
            seed = torch.zeros((), dtype=torch.int64, device=self.sample.device)
            sketch = CountSketch().apply(self.sample, seed, kept_rows(rate, self.sample.shape[0]))
            self._roundings[key] = float(get_codec(codec).variance(sketch).mean()) * rate
        return self._roundings[key]


@dataclass(frozen=True, eq=False)
class NormItem:
    """One normalisation layer to be decided.

    Attributes:
        modules: Its name.
        seen: What it normalises.
        noise_per_variance: Noise to signal, summed over the weights, for each unit of variance of what it reads back.
    """

    modules: tuple[str, ...]
    seen: SeenNorm
    noise_per_variance: float

    def choices(self, settings: RMMConfig) -> list[tuple[dict[str, Any], Cost]]:
        """Settings of the layer worth considering, and what they cost."""
        pairs = [(codec, 1.0) for codec in _CODECS]
        if self.seen.sketches:
            pairs += [(codec, rate) for codec in _SKETCH_CODECS for rate in _RATES]
        return [({"norm_codec": codec, "norm_rate": rate}, self.cost(codec, rate)) for codec, rate in pairs]

    def cost(self, codec: Any, rate: float) -> Cost:
        """Bytes kept, and noise to signal summed over the weights."""
        noise = self.noise_per_variance * self.seen.variance(codec, rate)
        return Cost(self.seen.saved_bytes(codec, rate), noise)

    def describe(self, config: RMMConfig) -> str:
        """What is kept under ``config``, for a table."""
        rate = "" if config.norm_rate == 1.0 else f"rate {config.norm_rate:g}, "
        return f"{rate}{config.norm_codec}"


def watch_norms(model: Module, seen: dict[str, SeenNorm]) -> Iterator[RemovableHandle]:
    """Hang hooks on the normalisation layers of ``model`` that fill ``seen``; yield their handles."""

    def look(name: str) -> Callable[..., None]:
        def hook(module: Module, args: tuple[Any, ...], out: Any) -> None:
            if not (module.training and out.requires_grad):
                return  # in eval it is torch's own; without a gradient nothing is kept
            calls = seen[name].calls + 1 if name in seen else 1
            of_rows = isinstance(module, LeanLayerNorm | LeanRMSNorm)
            seen[name] = (_read_rows if of_rows else _read_batch)(module, args[0].detach(), calls)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, NORMS):
            yield module.register_forward_hook(look(name))


def _read_batch(module: Any, x: Tensor, calls: int) -> SeenNorm:  # [N, C, *]
    sample = x[:: _stride(x.shape[0])].float()
    # Statistics of the sample serve as well as those of the batch.
    var, mean = torch.var_mean(sample, (0, *range(2, x.dim())), correction=0, keepdim=True)
    normalized = (sample - mean) / (var + module.eps).sqrt()
    return SeenNorm(calls, x.shape[0], x[0].numel(), x.dtype, normalized.flatten(1), sketches=True)


def _read_rows(module: Any, x: Tensor, calls: int) -> SeenNorm:  # [*, normalized_shape]
    rows = x.reshape(-1, prod(module.normalized_shape))
    sample = rows[:: _stride(rows.shape[0])].float()
    if isinstance(module, LeanRMSNorm):
        normalized = torch.nn.functional.rms_norm(sample, sample.shape[1:], eps=module.eps)
    else:
        normalized = torch.nn.functional.layer_norm(sample, sample.shape[1:], eps=module.eps)
    return SeenNorm(calls, rows.shape[0], rows.shape[1], x.dtype, normalized, sketches=False)


def _stride(num_rows: int) -> int:
    return -(-num_rows // _SAMPLED_ROWS)
