"""What one fine-tuning run is: all that decides it, resolved."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TextRun:
    """Everything that decides one run, resolved: two runs with equal fields may replace each other.

    ``rate`` to ``row_mask`` are None for the baseline, ``norm_codec`` and ``act_codec`` for all but rmm-lean.
    """

    task: str
    data_fingerprint: str
    model: str
    model_fingerprint: str
    method: str
    rate: float | None
    sketch: str | None
    codec: str | None
    center: bool | None
    norm_codec: str | None
    act_codec: str | None
    exclude: str | None
    row_mask: bool | None
    seed: int
    epochs: int
    max_steps: int | None
    batch_size: int
    lr: float
    warmup_share: float
    weight_decay: float
    max_length: int
    attention_dropout: float | None
    precision: str
    train_examples: int | None
    eval_examples: int | None
    eval_every_steps: int | None
    probe_every: int | None
    probe_layer: str | None
    track_memory: bool
    device: str
    threads: int | None

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits that identify the run in ``records.jsonl``."""
        values = asdict(self)
        # Runs recorded before there was this setting keep their keys.
        if not self.row_mask:
            del values["row_mask"]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def settings(self) -> str:
        """The method's settings, such as ``count_sketch 0.1 int8, norm int2, act int4``; empty for the baseline."""
        if self.rate is None:
            return ""
        words = (" uncentred" if self.center is False else "") + (" of tokens" if self.row_mask else "")
        parts = [f"{self.sketch} {self.rate:g} {self.codec}{words}"]
        parts += [f"norm {self.norm_codec}, act {self.act_codec}"] if self.norm_codec is not None else []
        return ", ".join(parts)

    @property
    def label(self) -> str:
        """Short name of the run's row: task, method and settings."""
        return f"{self.task} {self.method} {self.settings}".strip()
