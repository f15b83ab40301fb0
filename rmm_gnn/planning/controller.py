"""A rate that follows the noise: each layer keeps as much as holds its noise at a target."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.nn import Module

from rmm_gnn._validation import check_choice, check_positive_int, check_rate
from rmm_gnn.config import RMMConfig
from rmm_gnn.diagnostics.noise_record import NoiseRecord
from rmm_gnn.diagnostics.probe import GradientProbe
from rmm_gnn.planning.controller_plot import draw_changes
from rmm_gnn.planning.noise_at_rate import QUANTITIES, noise_share, quantity_at

# Rates are powers of this, so that a layer meets few different configs, and compiled code is not traced over and over.
_GRID = 1.02
# A measurement counts as this many times the smoothed one at most.
_MAX_JUMP = 10.0


@dataclass(frozen=True)
class RateChange:
    """What the controller saw and did at one layer.

    Attributes:
        step: The training step.
        layer: Qualified name of the layer.
        measured: The controlled quantity, smoothed.
        rate: The layer's rate from then on.
    """

    step: int
    layer: str
    measured: float
    rate: float


class NoiseController:
    r"""Keeps the noise that sketching adds at a target during training, by moving each layer's rate.

    This is the "certain level of noise in training" that the paper leaves as future work.  Every ``every`` steps a
    probe measures D2_RMM and D2_SGD of every layer.  The noise of k sketch rows is known to go with k as the family's
    variance does, so the size that would meet the target is computed, not searched for.  A layer is left alone while
    its smoothed measurement is within ``band`` of the target (hysteresis), and moved by at most ``max_change`` at a
    time.  Rates out of bounds are brought into them at once.  Layers with one weight have one rate, at first that of
    the first of them, and their noise is summed.  What the probe does not see is not controlled: a compiled model is
    refused, and the rates of one that is compiled later never move.

    Call ``step()`` once in every training step, after ``backward()``:

    .. code-block:: python

        controller = NoiseController(model, target=0.5)
        for ...:
            loss_of(model).backward()
            controller.step()
            optimizer.step()

    Args:
        model: A model with layers that keep sketches (``convert_to_rmm``); those with a fixed ``size`` are left alone.
        target: What the quantity is to be.
        quantity: "ratio", D2_RMM / D2_SGD; "share", D2_RMM / (D2_RMM + D2_SGD); or "relative", D2_RMM over the square
            of the gradient.
        min_rate: Lowest rate a layer may get.
        max_rate: Highest rate a layer may get.
        every: Steps between measurements.
        band: Relative distance from the target that is tolerated.
        smoothing: Weight of what was measured before, in [0, 1).
        max_change: Largest factor by which a rate moves at a time.
        mode: How the probe measures, "exact" or "sketch".
        max_history: Keep so many of the newest entries of ``history``.

    Raises:
        ValueError: If a value is out of range, or the model has no layer with a rate.
        TypeError: If an argument is of the wrong type, or ``model`` is compiled.

    Example:
        >>> import torch
        >>> from rmm_gnn import convert_to_rmm
        >>> model = convert_to_rmm(torch.nn.Linear(8, 4), RMMConfig(rate=0.02))
        >>> controller = NoiseController(model, target=1.0, every=1)
        >>> for _ in range(20):
        ...     model(torch.randn(500, 8)).square().mean().backward()
        ...     controller.step()
        >>> model.config.rate > 0.1
        True
    """

    def __init__(
        self,
        model: Module,
        target: float,
        *,
        quantity: str = "ratio",
        min_rate: float = 0.005,
        max_rate: float = 1.0,
        every: int = 20,
        band: float = 0.1,
        smoothing: float = 0.5,
        max_change: float = 2.0,
        mode: str = "exact",
        max_history: int = 100_000,
    ) -> None:
        self.target = _number("target", target, above=0.0)
        self.quantity = check_choice("quantity", quantity, QUANTITIES)
        self.min_rate, self.max_rate = check_rate("min_rate", min_rate), check_rate("max_rate", max_rate)
        if self.min_rate > self.max_rate:
            raise ValueError(f"'min_rate' must not exceed 'max_rate' (got {min_rate} and {max_rate}). Swap them.")
        if self.quantity == "share" and not self.target < 1:
            raise ValueError(f"'target' must be below 1 where it is a share (got {target}). Give a share such as 0.3.")
        self.band = _number("band", band, above=0.0)
        self.smoothing = _number("smoothing", smoothing, above=-1e-9, below=1.0)
        self.max_change = _number("max_change", max_change, above=1.0)
        check_positive_int("max_history", max_history)
        self._owners = _controlled(model)
        if not self._owners:
            raise ValueError(
                "'model' must have layers that keep a share of the rows (got none). Call convert_to_rmm(model, "
                "RMMConfig(rate=0.1)) first."
            )
        self._probe = GradientProbe(model, layers=self._owners, every=every, mode=mode, max_records=10_000)
        for owners in self._owners.values():
            self._set_rate(owners, _rate_of(owners[0][1]))
        self._smoothed: dict[str, float] = {}
        self.history: deque[RateChange] = deque(maxlen=max_history)

    @property
    def rates(self) -> dict[str, float]:
        """Rates of the controlled layers by name."""
        owned = [layer for owners in self._owners.values() for layer in owners]
        return {name: _rate_of(module) for name, module in owned}

    def remove(self) -> None:
        """Stop controlling; the rates stay."""
        self._probe.remove()

    def step(self) -> None:
        """Read what was measured since the last call, and move the rates that have to move."""
        measured: dict[tuple[int, str], list[NoiseRecord]] = {}
        while self._probe.records:
            record = self._probe.records.popleft()
            # What is held, or kept whole, has no noise that a rate would change.
            if record.kept == "sketch":
                measured.setdefault((record.step, record.layer), []).append(record)
        for (step, weight), records in measured.items():
            self._follow(step, self._owners[weight], records)

    def _follow(self, step: int, owners: list[tuple[str, Module]], records: list[NoiseRecord]) -> None:
        """Take what a step measured of a weight into account, and move the rate of its layers if that has to move."""
        name, module = owners[0]
        config = module.config
        assert isinstance(config, RMMConfig) and config.rate is not None
        value = quantity_at(self.quantity, records, config)
        negative = min(record.sketch_variance for record in records) < 0
        if not math.isfinite(value) or (negative and name not in self._smoothed):
            return  # nothing is known of the noise
        measured = self._smooth(name, value)
        wanted = config.rate
        if measured <= 0 or abs(math.log(measured / self.target)) > math.log1p(self.band):
            wanted = self._wanted(records, config, measured)
        if wanted != config.rate:
            # What was measured stands for the old rate; carry it over to the new one, or it would be moved again.
            self._remember(name, self._shifted(measured, noise_share(records, config, wanted)))
            self._set_rate(owners, wanted)
        self.history.append(RateChange(step, name, measured, wanted))

    def _smooth(self, name: str, value: float) -> float:
        before = self._smoothed.get(name)
        if before is not None:
            # One batch like no other must not decide for long.
            value = self.smoothing * before + (1.0 - self.smoothing) * min(value, _MAX_JUMP * before)
        self._remember(name, value)
        return value

    def _remember(self, name: str, value: float) -> None:
        """Keep what is known of a layer, for which only a positive number will do; with any other, start anew."""
        if math.isfinite(value) and value > 0:
            self._smoothed[name] = value
        else:
            self._smoothed.pop(name, None)

    def _set_rate(self, owners: list[tuple[str, Module]], rate: float) -> None:
        for _, module in owners:
            assert isinstance(module.config, RMMConfig)
            module.config = replace(module.config, rate=min(max(rate, self.min_rate), self.max_rate))

    def _shifted(self, measured: float, share: float) -> float:
        """The quantity after the noise has changed by the factor ``share``."""
        if self.quantity == "share":
            return measured * share / (1.0 - measured + measured * share)
        return measured * share

    def _wanted(self, records: list[NoiseRecord], config: RMMConfig, measured: float) -> float:
        """The rate, on the grid and within bounds, at which the quantity would be closest to the target.

        Of rates that bring it equally close, as where ``max_size`` decides how much is kept, the nearest.
        """
        assert config.rate is not None
        now = config.rate
        low, high = max(self.min_rate, now / self.max_change), min(self.max_rate, now * self.max_change)
        if measured <= 0:
            return low  # as at rate 1, where there is no noise to compute with
        grid = [_GRID**power for power in range(math.ceil(math.log(low, _GRID)), math.floor(math.log(high, _GRID)) + 1)]

        def miss(rate: float) -> tuple[float, float]:
            shifted = self._shifted(measured, noise_share(records, config, rate))
            return abs(math.log(max(shifted, 1e-300) / self.target)), abs(math.log(rate / now))

        return min((now, low, high, *(rate for rate in grid if low <= rate <= high)), key=miss)

    def state_dict(self) -> dict[str, Any]:
        """Return what resuming needs: the rates, what was measured, and the number of steps."""
        return {"rates": self.rates, "smoothed": dict(self._smoothed), "step": self._probe.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, which ``state_dict`` returned.

        Raises:
            ValueError: If its layers are not those of this controller.
        """
        if state["rates"].keys() != self.rates.keys():
            raise ValueError(
                f"'state' must be of the same layers (got {', '.join(state['rates'])}). "
                f"This controller has {', '.join(self.rates)}."
            )
        for owners in self._owners.values():
            self._set_rate(owners, state["rates"][owners[0][0]])
        self._smoothed = dict(state["smoothed"])
        self._probe.step = state["step"]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the measured quantity of every layer with the target and its band, and the rates, by step.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If nothing was measured yet.
        """
        draw_changes(self.history, path, quantity=self.quantity, target=self.target, band=self.band)


def _controlled(model: Module) -> dict[str, list[tuple[str, Module]]]:
    """For every weight of layers with a rate: their names and the layers."""
    trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: dict[str, list[tuple[str, Module]]] = {}
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight1", getattr(module, "weight", None))
        config = getattr(module, "config", None)
        if isinstance(config, RMMConfig) and config.rate is not None and id(weight) in trained and weight.dim() == 2:
            found.setdefault(trained[id(weight)], []).append((name or "model", module))
    return found


def _rate_of(module: Module) -> float:
    assert isinstance(module.config, RMMConfig) and module.config.rate is not None
    return module.config.rate


def _number(name: str, value: Any, *, above: float, below: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"'{name}' must be a number (got {type(value).__name__}). Give a float.")
    if not above < value < below:
        rule = f"be above {max(above, 0.0):g}" + (f" and below {below:g}" if math.isfinite(below) else "")
        raise ValueError(f"'{name}' must {rule} (got {value}). Choose another value.")
    return float(value)
