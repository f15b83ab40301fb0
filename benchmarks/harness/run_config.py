"""What one run is: all that decides it, resolved."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides one training run, resolved: two runs with equal fields may replace each other.

    ``sketch`` to ``noise_target`` are None where the method has no such setting.  ``rate`` is a share of rows for
    methods that sketch and a share of features for EXACT.
    """

    dataset: str
    data_fingerprint: str
    method: str
    sketch: str | None
    rate: float | None
    center: bool | None
    codec: str | None
    norm_codec: str | None
    norm_rate: float | None
    x0_codec: str | None
    anchor: bool | None
    held: bool | None
    exact_bits: int | None
    budget: str | None
    adaptive: str | None
    noise_target: float | None
    seed: int
    epochs: int
    eval_every: int
    layers: int
    hidden: int
    alpha: float
    theta: float | None
    shared_weights: bool
    dropout: float
    bn_momentum: float
    lr: float
    weight_decay: float
    clip: float
    device: str
    threads: int | None

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that identify the run in ``records.jsonl``."""
        values = asdict(self)
        # Runs recorded before there were these settings keep their keys.
        if self.norm_rate in (None, 1.0):
            del values["norm_rate"]
        if not self.anchor:
            del values["anchor"]
        if not self.held:
            del values["held"]
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def settings(self) -> str:
        """The method's settings, such as ``count_sketch 0.1 int8, norm int2, x0 int4``; empty where it has none."""
        first = [self.sketch, None if self.rate is None else f"{self.rate:g}", self.codec]
        if self.exact_bits is not None:
            first += ["of features", f"int{self.exact_bits}"]
        if self.center is False:
            first.append("uncentred")
        if self.anchor:
            first.append("anchored")
        if self.held is False:
            first.append("with sketched features")
        parts = [" ".join(part for part in first if part is not None)]
        rows = "" if self.norm_rate in (None, 1.0) else f"{self.norm_rate:g} "
        parts += [f"norm {rows}{self.norm_codec}"] if self.norm_codec is not None else []
        parts += [f"x0 {self.x0_codec}"] if self.x0_codec is not None else []
        parts += [f"in {self.budget}"] if self.budget is not None else []
        if self.adaptive not in (None, "off"):
            target = "" if self.noise_target is None else f" for noise {self.noise_target:g}"
            parts.append(f"adaptive {self.adaptive}{target}")
        return ", ".join(parts)

    @property
    def label(self) -> str:
        """Short name of the row this run belongs to: the method and its settings."""
        return f"{self.method} {self.settings}".strip()
