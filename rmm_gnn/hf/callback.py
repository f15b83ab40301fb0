"""What sketching does to a run of ``Trainer``, in its logs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.nn import Module

from rmm_gnn._validation import check_bool, check_choice, check_positive_int
from rmm_gnn.config import RMMConfig
from rmm_gnn.diagnostics.noise_record import NoiseRecord
from rmm_gnn.diagnostics.probe import MODES, GradientProbe
from rmm_gnn.diagnostics.process_peak import ProcessPeak
from rmm_gnn.hf.watch_saved import WatchSaved
from rmm_gnn.planning import NoiseController

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError(
        "RMMTrainerCallback needs transformers, which is not installed. Run: pip install -e '.[transformers]'"
    ) from error


class RMMTrainerCallback(TrainerCallback):
    """Adds to the logs of ``Trainer`` what is kept for backward, the noise of it, and the memory's peak.

    =========================== ====================================================================================
    entry of the log            what it is
    =========================== ====================================================================================
    ``rmm_saved_bytes``         kept for backward when forward has ended, parameters and inputs excepted
    ``rmm_compressed_bytes``    the part that layers and functions of this library keep
    ``rmm_noise_to_signal``     D2_RMM over the square of the gradient, of all layers that keep sketches together
    ``rmm_noise_to_sgd``        D2_RMM / D2_SGD of the same
    ``rmm_peak_bytes``          on CUDA: the allocator's peak in the step, optimizer included
    ``rmm_peak_resident_bytes`` on CPU under Linux: the process's, all that it holds included
    ``rmm_mean_rate``           with a controller: the mean of the layers' rates
    =========================== ====================================================================================

    The noise is what a ``GradientProbe`` measures, and no random number of the run is drawn: the run is the one without
    the callback, losses in its logs included.  In mode "sketch" no input is held, and the square of the gradient is an
    estimate: where there is little but noise it can come out negative, and a ratio of such is left out: a log may
    lack ``rmm_noise_to_signal``.  So is the noise in blocks under reentrant checkpointing, which nothing looks into.

    Entries wait for the trainer's next log of a loss, as ``logging_steps`` says; of several measured steps since the
    last one the newest is logged, and what is measured after the last one is not.  ``records`` has the noise of every
    measured step, layer by layer.

    The entries are in ``state.log_history`` wherever the callback stands.  Reporters that stand before it in the
    trainer's list, as those of ``report_to`` do before all ``callbacks``, do not see them: ``attach`` puts it first.

    Args:
        every: Measure the first step, and those whose number is a multiple of this.
        saved: Whether to measure the bytes.
        noise: Whether to measure the noise.
        mode: How the noise is measured, "sketch" or "exact", which holds the inputs of converted layers in measured
            steps, as stock layers do in all.
        peak: Whether to measure the peak; resets the counter that is read (``ProcessPeak``).
        controller: A ``NoiseController`` of the model, or its settings as a dictionary (``{"target": 0.5}``), with
            ``every`` as here if it is not among them; it is made when training begins.  It counts passes of the model,
            of which a step with accumulated gradients has several.
        max_records: Keep so many of the newest records.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If a count is less than 1, nothing is to be done, or, when training begins, the model has no
            converted layer, is compiled, or has layers of a family whose noise ``mode`` cannot measure.

    Example:
        >>> callback = RMMTrainerCallback(every=100)
        >>> # trainer = Trainer(apply_rmm(model, {"rate": 0.1}), args, train_dataset=data, callbacks=[callback])
    """

    def __init__(
        self,
        *,
        every: int = 50,
        saved: bool = True,
        noise: bool = True,
        mode: str = "sketch",
        peak: bool = True,
        controller: NoiseController | Mapping[str, Any] | None = None,
        max_records: int = 100_000,
    ) -> None:
        check_positive_int("every", every)
        self.every = every
        self.saved, self.noise, self.peak = check_bool("saved", saved), check_bool("noise", noise), peak
        check_bool("peak", peak)
        if not isinstance(controller, NoiseController | Mapping | None):
            raise TypeError(
                f"'controller' must be a NoiseController or its settings (got {type(controller).__name__}). "
                "Write {'target': 0.5}."
            )
        if not (saved or noise or peak or controller is not None):
            raise ValueError(
                "'saved', 'noise' or 'peak' must be True where there is no controller (got none of them). "
                "Leave the callback out instead."
            )
        self.mode = check_choice("mode", mode, MODES)
        self.controller = controller
        self.records: deque[NoiseRecord] = deque(maxlen=check_positive_int("max_records", max_records))
        self._probe: GradientProbe | None = None
        self._watch: WatchSaved | None = None
        self._peak: ProcessPeak | None = None
        self._pending: dict[str, float | int] = {}

    def attach(self, trainer: Any) -> RMMTrainerCallback:
        """Put the callback before all others of ``trainer``, so that every reporter sees its entries; returns it."""
        callbacks = trainer.callback_handler.callbacks
        if self in callbacks:
            callbacks.remove(self)
        callbacks.insert(0, self)
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        self._stop()
        self._pending = {}
        compiled = args.torch_compile or hasattr(model, "_orig_mod") or getattr(model, "_compiled_call_impl", None)
        if compiled and (self.saved or self.noise):
            raise ValueError(
                "'saved' and 'noise' must be False where the model is compiled (got a compiled model, or "
                "torch_compile=True): compiled code is never measured. Pass saved=False, noise=False."
            )
        if not _weights(model):
            raise ValueError(
                "'model' must have trained layers that keep sketches (got none). Call apply_rmm before the trainer is "
                "made."
            )
        families = {config.family for config in _weights(model).values()}
        unknown = sorted(family.name for family in families if not family.variance_follows_from_moments)
        if self.noise and self.mode == "sketch" and unknown:
            raise ValueError(
                "'mode' must be 'exact' where the noise cannot be told from sketches "
                f"(got layers with {unknown[0]!r}). Pass mode='exact', or noise=False."
            )
        if isinstance(self.controller, Mapping):
            self.controller = NoiseController(model, **{"every": self.every, **self.controller})

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = kwargs["model"]
        self._stop()
        if not self._measures(state.global_step + 1):
            return
        if self.saved:
            self._watch = WatchSaved(model)
        if self.noise:
            self._probe = GradientProbe(model, layers=_weights(model), every=1, mode=self.mode)
        if self.peak:
            self._peak = ProcessPeak(next(model.parameters()).device)
            self._peak.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if isinstance(self.controller, NoiseController):
            self.controller.step()
        if self._measures(state.global_step):
            self._pending = self._entries(kwargs["model"], state.global_step)
        self._stop()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # Evaluations log too.
        if not self._pending or logs is None or "loss" not in logs:
            return
        # The trainer has noted its copy of the entries before it calls.
        logs.update(self._pending)
        state.log_history[-1].update(self._pending)
        self._pending = {}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._stop()

    def _measures(self, step: int) -> bool:
        return step == 1 or step % self.every == 0

    def _entries(self, model: Module, step: int) -> dict[str, float | int]:
        entries: dict[str, float | int] = {}
        if self._watch is not None and self._watch.largest is not None:
            entries["rmm_saved_bytes"] = self._watch.largest.saved_bytes
            entries["rmm_compressed_bytes"] = self._watch.largest.compressed_bytes
        if self._probe is not None:
            # Every probe counts from 0, one pass of the model a step.
            sketched = [replace(record, step=step) for record in self._probe.records if record.kept == "sketch"]
            entries |= _noise(sketched)
            self.records.extend(sketched)
        if self._peak is not None:
            peak = self._peak.read_bytes()
            cuda = next(model.parameters()).device.type == "cuda"
            if peak is not None:
                entries["rmm_peak_bytes" if cuda else "rmm_peak_resident_bytes"] = peak
        if isinstance(self.controller, NoiseController):
            rates = self.controller.rates.values()
            entries["rmm_mean_rate"] = sum(rates) / len(rates)
        return entries

    def _stop(self) -> None:
        """Take hooks off, also those of a step that an exception has ended."""
        for watching in (self._watch, self._probe):
            if watching is not None:
                watching.remove()
        self._watch = self._probe = self._peak = None


def _weights(model: Module) -> dict[str, RMMConfig]:
    """Names of trained weights of layers that keep sketches, and the configs."""
    trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found: dict[str, RMMConfig] = {}
    for module in model.modules():
        weight: Any = getattr(module, "weight1", getattr(module, "weight", None))
        config = getattr(module, "config", None)
        if isinstance(config, RMMConfig) and id(weight) in trained and weight.dim() == 2:
            found[trained[id(weight)]] = config
    return found


def _noise(records: list[NoiseRecord]) -> dict[str, float | int]:
    """Noise over signal, and over that of the samples, of all layers together."""
    noise = sum(record.rmm_variance for record in records)
    parts = {
        "rmm_noise_to_signal": sum(record.gradient_square for record in records),
        "rmm_noise_to_sgd": sum(record.sgd_variance for record in records),
    }
    # Estimates can be negative where there is little but noise; a ratio of such says nothing.
    ratios = {name: noise / whole for name, whole in parts.items() if whole > 0}
    return {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio) and ratio >= 0}
