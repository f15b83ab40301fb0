"""A learning rate that follows the noise that sketching adds."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import Module
from torch.optim.lr_scheduler import LRScheduler

from rmm_gnn.diagnostics.probe import GradientProbe


class NoiseLR(LRScheduler):
    r"""Scales the learning rate by how much of the gradient's second moment is not the sketch's noise.

    For an L-smooth loss, a step of size eta along an unbiased estimate of the gradient g with variance V lowers it by

    .. math::
        \eta |g|^2 - \frac{L \eta^2}{2} (|g|^2 + V)

    on average at least, which is most at :math:`\eta = |g|^2 / (L (|g|^2 + V))`.  Going from the noise of the data
    alone, V = D2_SGD, to that of data and sketch, the best step shrinks by

    .. math::
        \frac{|g|^2 + D^2_{SGD}}{|g|^2 + D^2_{SGD} + D^2_{RMM}}

    and the rate, tuned for exact gradients, is multiplied by this, all measured layers summed and smoothed over
    measurements.  In full-batch training, where no samples are chosen, the data bring no noise: ``full_batch=True``
    leaves D2_SGD out.

    *When.*  The argument is for one step of plain SGD.  Over many steps noise averages out, so that with a base rate
    far from the limit of stability this trains more slowly than the base rate alone (``benchmarks/micro/noise_lr.py``
    measures it).  It is for base rates that exact gradients stand and sketched ones do not.  Optimisers that divide by
    the gradient's own scale, such as Adam, react to noise by themselves; with them this loses.

    *Other schedulers.*  At every ``step()`` a group's rate, as it is, is divided by the factor of before and multiplied
    by that of now.  So this goes with any scheduler that changes the rate it finds, such as ``LinearLR``, ``StepLR`` or
    ``CosineAnnealingLR`` down to 0: step both.  One that sets the rate from the base rates, such as ``LambdaLR`` or
    ``OneCycleLR``, undoes the factor.

    *Ranks of a distributed job* measure their own shards of the batch and step with one rate, or their weights would
    part: the terms are averaged over the ranks, and those of noise, which falls as gradients are averaged, divided by
    their number.  All ranks have to call ``step()`` alike, which communicates after a measurement.

    Args:
        optimizer: Its groups' learning rates are scaled.
        model: What is trained; a probe watches it.
        full_batch: Every step sees all samples.
        every: Steps between measurements.
        smoothing: Weight of what was measured before, in [0, 1).
        mode: How the probe measures, "exact" or "sketch".
        min_factor: The rate is never scaled below this, in (0, 1).
        process_group: The ranks whose gradients are averaged; all ranks of the job if None.
        last_epoch: As in every scheduler of PyTorch.

    Raises:
        ValueError: If a value is out of range, or the model trains no weight by a product.
        TypeError: If ``model`` is not a module or is compiled: a probe never measures compiled code.

    Example:
        >>> from rmm_gnn import RMMConfig, convert_to_rmm
        >>> model = convert_to_rmm(torch.nn.Linear(8, 4), RMMConfig(rate=0.1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> scheduler = NoiseLR(optimizer, model, every=1)
        >>> model(torch.randn(100, 8)).square().mean().backward()
        >>> optimizer.step()
        >>> scheduler.step()
        >>> 0 < scheduler.get_last_lr()[0] < 0.1
        True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: Module,
        *,
        full_batch: bool = False,
        every: int = 20,
        smoothing: float = 0.5,
        mode: str = "exact",
        min_factor: float = 0.01,
        process_group: dist.ProcessGroup | None = None,
        last_epoch: int = -1,
    ) -> None:
        if not 0.0 <= smoothing < 1.0:
            raise ValueError(f"'smoothing' must be in [0, 1) (got {smoothing}). Choose another value.")
        if not 0.0 < min_factor < 1.0:
            raise ValueError(f"'min_factor' must be in (0, 1) (got {min_factor}). Choose another value.")
        self.full_batch, self.smoothing, self.min_factor = full_batch, smoothing, min_factor
        self.factor = 1.0
        self._applied = 1.0
        self._measured = False
        self._watched = -1
        self._process_group = process_group
        self._probe = GradientProbe(model, every=every, mode=mode, max_records=10_000)
        self._device = next(model.parameters()).device
        super().__init__(optimizer, last_epoch)

    def remove(self) -> None:
        """Stop measuring; the factor stays."""
        self._probe.remove()

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the groups' rates with the factor of now in place of that of before, after reading the records."""
        signal, data, added = self._measurements()
        total = signal + data + added
        if math.isfinite(total) and total > 0:
            kept = self.smoothing if self._measured else 0.0
            self.factor = kept * self.factor + (1.0 - kept) * (signal + data) / total
            self._measured = True
        before, self._applied = self._applied, max(self.min_factor, self.factor)
        return [group["lr"] * (self._applied / before) for group in self.optimizer.param_groups]

    def _measurements(self) -> tuple[float, float, float]:
        """What was measured since the last call: the square of the gradient, the data's noise, and the sketches'."""
        ranks = 1
        if dist.is_available() and dist.is_initialized():
            ranks = dist.get_world_size(self._process_group)
        # Whether ranks talk must not depend on records: one whose layers got no gradient has none.
        seen, self._watched = self._watched, self._probe.step // self._probe.every
        if ranks > 1 and seen == self._watched:
            return 0.0, 0.0, 0.0
        records = list(self._probe.records)
        self._probe.records.clear()
        signal = sum(max(0.0, record.gradient_square) for record in records)
        data = 0.0 if self.full_batch else sum(max(0.0, record.sgd_variance) for record in records)
        # Estimates can be negative; what is kept whole has no noise, but what it would have.
        added = sum(max(0.0, record.rmm_variance) for record in records if record.kept != "whole")
        if ranks == 1:
            return signal, data, added
        terms = torch.tensor([signal, data, added], dtype=torch.float64, device=self._device)
        dist.all_reduce(terms, group=self._process_group)
        signal, data, added = (terms / ranks).tolist()
        return signal, data / ranks, added / ranks

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the probe, whose hooks belong to the model, and what belongs to the job."""
        local = ("_probe", "_process_group", "_device")
        state = {key: value for key, value in super().state_dict().items() if key not in local}
        return state | {"probe_step": self._probe.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` returned."""
        state = dict(state_dict)
        self._probe.step = state.pop("probe_step")
        super().load_state_dict(state)
