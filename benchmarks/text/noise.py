"""The noise of one layer's weight gradient during fine-tuning (the paper's Figures 3 and 5)."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from torch import nn

from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.methods import rmm_config
from benchmarks.text.run_config import TextRun
from rmm_gnn.diagnostics.noise_record import NoiseRecord

# At which the layers of a baseline are judged, as in the paper's figures.
BASELINE_RATE = 0.5
_SERIES = ("sgd_variance", "rmm_variance", "paper_rmm_variance", "alignment")


class NoiseTrack:
    """Watches one layer every so many steps; nothing where the run does not ask for it.

    Raises:
        BenchmarkError: When there is no such layer.
    """

    def __init__(self, model: nn.Module, run: TextRun) -> None:
        from rmm_gnn import GradientProbe

        self._probe: GradientProbe | None = None
        self._scales: list[float] = []
        if run.probe_every is None:
            return
        self._layer = probed_layer(model, run.probe_layer)
        config = rmm_config(run, BASELINE_RATE)
        self._probe = GradientProbe(model, config, layers=[f"{self._layer}.weight"], every=run.probe_every)

    def after_backward(self, loss_scale: float) -> None:
        """Note by what the gradients of this step were multiplied."""
        if self._probe is not None:
            self._scales += [loss_scale] * (len(self._probe.records) - len(self._scales))

    def state_dict(self) -> dict[str, Any]:
        """What was measured so far, and the number of steps."""
        if self._probe is None:
            return {}
        records = [asdict(record) for record in self._probe.records]
        return {"step": self._probe.step, "records": records, "scales": list(self._scales)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        if self._probe is not None:
            self._probe.step, self._scales = state["step"], state["scales"]
            self._probe.records.extend(NoiseRecord(**record) for record in state["records"])

    def record(self) -> dict[str, Any] | None:
        """JSON-able fields; None where nothing was asked for."""
        if self._probe is None:
            return None
        self._probe.remove()
        found: dict[str, list[Any]] = {name: [] for name in ("step", *_SERIES, "gradient_norm2")}
        for record, scale in zip(self._probe.records, self._scales, strict=True):
            found["step"].append(record.step + 1)  # the probe counts from 0
            for name in _SERIES:
                found[name].append(getattr(record, name) / (1.0 if name == "alignment" else scale**2))
            found["gradient_norm2"].append(record.gradient_square / scale**2)
        return {"layer": self._layer, **found}


def probed_layer(model: nn.Module, name: str | None) -> str:
    """The named linear layer; for None the first one of the middle block's feed-forward part."""
    linears = [found for found, module in model.named_modules() if isinstance(module, nn.Linear)]
    if name is not None:
        if name not in linears:
            raise BenchmarkError(
                f"'probe_layer' must name a linear layer (got '{name}'). They are: {', '.join(linears)}."
            )
        return name
    blocks = [found for found in linears if re.fullmatch(r".*\.\d+\.intermediate\.dense", found)]
    if not blocks:
        raise BenchmarkError(f"'probe_layer' must be given for this model. It has: {', '.join(linears)}.")
    return blocks[len(blocks) // 2]
