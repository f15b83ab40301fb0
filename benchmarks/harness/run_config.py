"""What one run is: all that decides it, resolved."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from benchmarks.harness.loader_choice import FULL, LOADERS, SETTINGS
from benchmarks.harness.options import words


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides one training run, resolved: two runs with equal fields may replace each other.

    ``sketch`` to ``noise_target`` are None where the method has no such setting, ``fan_out`` to ``workers`` where the
    loader has none.  ``rate`` is a share of rows for methods that sketch and a share of features for EXACT.
    ``world_size`` counts the processes that train.
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
    loader: str = FULL
    fan_out: tuple[int, ...] | None = None
    batch_size: int | None = None
    num_parts: int | None = None
    parts_per_batch: int | None = None
    walk_length: int | None = None
    coverage: int | None = None
    edge_weights: str | None = None
    eval_chunk: int | None = None
    workers: int | None = None
    world_size: int = 1

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
        if self.loader == FULL:
            for name in ("loader", "world_size", *SETTINGS):
                del values[name]
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
    def loading(self) -> str:
        """The loader and its settings, such as ``neighbor (fan out 10 5, batch size 512)``; empty for ``full``."""
        if self.loader == FULL:
            return ""
        names = [name for name in LOADERS[self.loader].settings if name not in ("eval_chunk", "workers")]
        settings = ", ".join(f"{name.replace('_', ' ')} {words(getattr(self, name))}" for name in names)
        return f"{self.loader} ({settings})"

    @property
    def label(self) -> str:
        """Short name of the row this run belongs to: the method and its settings."""
        return f"{self.method} {self.settings}".strip()
