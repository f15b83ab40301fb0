"""What one invocation of the GLUE benchmark asks for."""

from __future__ import annotations

import argparse
import itertools
import re
import time
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.options import CHECKPOINTS, check, check_checkpoints, option
from benchmarks.text.methods import METHODS
from benchmarks.text.precision import PRECISIONS
from benchmarks.text.run_config import TextRun
from benchmarks.text.tasks import TASKS

_CODECS = "fp32, bf16, fp16, int8, int4, int2, int1, or with settings as int4:group_size=64"
_AXES = ("rate", "method", "sketch", "codec")


def _rate(text: str) -> float | None:
    if text == "none":
        return None
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'rate' must be a share such as 0.1, or none (got '{text}').") from None


def _is_pattern(text: str | None) -> bool:
    try:
        re.compile(text or "")
    except re.error:
        return False
    return True


@dataclass(frozen=True)
class TextSweep:
    """One invocation; the defaults are fairseq's settings for RoBERTa-base, task by task.

    Raises:
        ValueError: When a value is out of its range.
    """

    task: tuple[str, ...] = option(("mrpc",), "tasks, one table each", nargs="+", choices=tuple(TASKS), metavar="TASK")
    data_dir: str | None = option(
        None, "folder with GLUE's TSV files, DIR/SST-2/train.tsv and so on; unset: from the hub, through datasets"
    )
    model: str = option(
        "roberta-base", "tiny (a small RoBERTa, its tokenizer trained on the task's text), a folder, or a hub name"
    )
    out: str | None = option(None, "folder for results; unset: a new runs/glue-TASK-DATE-TIME")
    resume: bool = option(
        False, "continue in --out: skip the runs recorded there, go on with those cut off", action="store_true"
    )
    checkpoint_every: int | None = option(None, f"steps {CHECKPOINTS}", type=int)
    smoke: bool = option(
        False, "a few steps of the tiny model on sentences made up on the spot; seconds on CPU", action="store_true"
    )
    rate: tuple[float | None, ...] = option(
        (None, 0.1),
        "share of the rows that linear layers keep, one row of the table each; none: exact training, the baseline",
        nargs="+",
        type=_rate,
    )
    method: tuple[str, ...] = option(
        ("rmm",),
        "rmm: linear layers keep sketches; rmm-lean: and normalisation, activations, dropout keep a few bits",
        nargs="+",
        choices=METHODS,
    )
    sketch: tuple[str, ...] = option(
        ("count_sketch",), "sketch families, one row each; with settings as sors:transform=dct", nargs="+"
    )
    codec: tuple[str, ...] = option(("fp32",), f"how sketches are stored, one row each: {_CODECS}", nargs="+")
    center: str = option("on", "subtract the column means before sketching", choices=("on", "off"))
    norm_codec: str = option("int2", "how rmm-lean stores LayerNorm's input; named as --codec")
    act_codec: str = option("int4", "how rmm-lean stores the derivative of GELU; named as --codec")
    exclude: str | None = option(
        None, "regular expression; linear layers whose whole name matches stay exact, such as 'classifier.*'"
    )
    row_mask: str = option(
        "off", "on: sketch the rows of tokens and none of padding; the rate is a share of these", choices=("on", "off")
    )
    runs: int = option(5, "runs per row; run i uses seed + i in every row", type=int)
    seed: int = option(0, "seed of the first run (head's weights, order of the batches, dropout)", type=int)
    epochs: int | None = option(None, "passes over the training split; unset: 10, and 3 for --model tiny", type=int)
    max_steps: int | None = option(None, "end after so many steps, the learning rate at 0 there", type=int)
    batch_size: int | None = option(None, "unset: fairseq's of the task, 16 or 32; 16 for QNLI", type=int)
    lr: float | None = option(
        None, "largest learning rate; unset: fairseq's of the task, 1e-5 or 2e-5, and 5e-4 for --model tiny", type=float
    )
    weight_decay: float = option(0.1, "AdamW's", type=float)
    max_length: int = option(128, "tokens of an example; longer ones are cut", type=int)
    attention_dropout: float | None = option(
        None, "dropout of attention weights; unset: the model's own; fused attention on CPU needs 0", type=float
    )
    precision: str = option("fp32", "fp32, or automatic casts; fp16 needs CUDA", choices=PRECISIONS)
    train_examples: int | None = option(None, "train on so many examples, drawn once for all runs", type=int)
    eval_examples: int | None = option(None, "evaluate on so many examples, drawn once for all runs", type=int)
    eval_every_steps: int | None = option(
        None, "steps between evaluations; unset: an epoch; the last step is always evaluated", type=int
    )
    probe_every: int | None = option(
        None, "steps between measurements of one layer's gradient noise (curves of Figures 3 and 5)", type=int
    )
    probe_layer: str | None = option(None, "the layer; unset: the first feed-forward layer of the middle block")
    track_memory: bool = option(False, "memory of every step of the first epoch (Figure 8)", action="store_true")
    device: str = option("auto", "auto (CUDA where there is one) | cpu | cuda | cuda:N")
    threads: int | None = option(None, "CPU threads; unset: PyTorch's default", type=int)

    def __post_init__(self) -> None:
        for name in ("runs", "max_length"):
            check(name, getattr(self, name) >= 1, "be at least 1", getattr(self, name), "Give a positive integer.")
        for name in (
            "epochs", "max_steps", "batch_size", "train_examples", "eval_examples", "eval_every_steps", "probe_every",
            "threads",
        ):  # fmt: skip
            value = getattr(self, name)
            check(name, value is None or value >= 1, "be at least 1", value, "Leave it out for the default.")
        check_checkpoints(self.checkpoint_every)
        check("lr", self.lr is None or self.lr > 0, "be positive", self.lr, "fairseq uses 1e-5.")
        check("weight_decay", self.weight_decay >= 0, "not be negative", self.weight_decay, "Use 0 to turn it off.")
        dropout = self.attention_dropout
        check("attention_dropout", dropout is None or 0 <= dropout < 1, "be in [0, 1)", dropout, "Give a fraction.")
        for name in ("task", *_AXES):
            value = getattr(self, name)
            check(name, len(set(value)) == len(value) > 0, "name different values", value, "Give each one once.")
        named = not self.resume or self.out is not None
        check("resume", named, "come with --out", self.resume, "Name the folder to continue.")
        check("exclude", _is_pattern(self.exclude), "be a regular expression", self.exclude, "Such as 'classifier.*'.")
        alone = self.probe_layer is None or self.probe_every is not None
        check("probe_layer", alone, "come with --probe-every", self.probe_layer, "Say how often to measure.")

    def out_dir(self) -> Path:
        """The results folder; a new one named after the tasks and the time unless ``out`` is given."""
        if self.out is not None:
            return Path(self.out)
        return Path("runs") / f"glue-{'-'.join(self.task)}-{time.strftime('%Y%m%d-%H%M%S')}"

    def expand(self, name: str, device: str, data_fingerprint: str = "", model_fingerprint: str = "") -> list[TextRun]:
        """All runs of a task, first run of every row first, so that an interrupted sweep holds complete pairs."""
        task, tiny = TASKS[name], self.model == "tiny"
        taken = {f.name for f in fields(TextRun)} & {f.name for f in fields(TextSweep)}
        own = {field: getattr(self, field) for field in taken} | {
            "task": name,
            "data_fingerprint": data_fingerprint,
            "model_fingerprint": model_fingerprint,
            "epochs": self.epochs or (3 if tiny else 10),
            "batch_size": self.batch_size or task.batch_size,
            "lr": self.lr or (5e-4 if tiny else task.lr),
            "warmup_share": task.warmup_share,
            "device": device,
        }
        return [TextRun(**(own | row | {"seed": self.seed + run})) for run in range(self.runs) for row in self._rows()]

    def _rows(self) -> list[dict[str, Any]]:
        """What differs between the rows of a table; None for a setting the method does not have."""
        rows: list[dict[str, Any]] = []
        for rate, method, sketch, codec in itertools.product(*(getattr(self, axis) for axis in _AXES)):
            lean = method == "rmm-lean"
            row = {
                "method": method,
                "rate": rate,
                "sketch": sketch,
                "codec": codec,
                "center": self.center == "on",
                "norm_codec": self.norm_codec if lean else None,
                "act_codec": self.act_codec if lean else None,
                "exclude": self.exclude,
                "row_mask": self.row_mask == "on",
            }
            if rate is None:
                row = dict.fromkeys(row) | {"method": "baseline"}
            if row not in rows:  # the baseline, once for each combination of the others
                rows.append(row)
        return rows


# Whatever is given on the command line wins over these.
SMOKE: dict[str, Any] = {
    "task": ("sst2", "stsb"),
    "model": "tiny",
    "rate": (None, 0.5),
    "method": METHODS,
    "runs": 2,
    "epochs": 1,
    "max_steps": 4,
    "max_length": 32,
    "eval_every_steps": 2,
    "probe_every": 2,
    "track_memory": True,
}


def resolve(given: dict[str, Any]) -> TextSweep:
    """Fill what was not given: from `SMOKE`, then from the protocol.

    Args:
        given: Field names and values named on the command line.

    Returns:
        The complete configuration.

    Raises:
        ValueError: When a value is out of its range.
    """
    values = {f.name: f.default for f in fields(TextSweep) if f.default is not MISSING}
    return TextSweep(**(values | (SMOKE if given.get("smoke") else {}) | given))
