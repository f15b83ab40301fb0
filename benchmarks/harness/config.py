"""What one invocation asks for."""

from __future__ import annotations

import itertools
import time
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks.harness.loader_choice import FULL, LOADERS, SETTINGS
from benchmarks.harness.method_choice import AXES, SYNTAX, parse_method
from benchmarks.harness.methods import METHODS
from benchmarks.harness.options import CHECKPOINTS, check, check_checkpoints, option
from benchmarks.harness.run_config import RunConfig

_CODECS = "fp32, bf16, fp16, int8, int4, int2, int1, or with settings as int4:group_size=64"


@dataclass(frozen=True)
class Sweep:
    """One invocation; the defaults are the published GCN2 protocol on ogbn-arxiv.

    Raises:
        ValueError: When a value is out of its range.
    """

    dataset: str = option("ogbn-arxiv", "ogbn-arxiv | digits | npz:PATH | planetoid:NAME")
    root: str = option("data", "folder with the data sets (OGB's ogbn_arxiv/, Planetoid's NAME/raw/)")
    download: bool = option(False, "fetch missing data; nothing else touches the network", action="store_true")
    out: str | None = option(None, "folder for results; unset: a new runs/DATASET-DATE-TIME")
    resume: bool = option(
        False, "continue in --out: skip the runs recorded there, go on with those cut off", action="store_true"
    )
    checkpoint_every: int | None = option(None, f"epochs {CHECKPOINTS}", type=int)
    smoke: bool = option(
        False,
        "a few epochs of a tiny model, on digits unless --dataset is given; seconds on CPU",
        action="store_true",
    )
    method: tuple[str, ...] = option(
        ("baseline", "rmm", "rmm-lean:codec=int8,x0-codec=int4", "exact:rate=0.125"),
        f"methods to compare: {', '.join(METHODS)}; settings given with a method, as "
        "rmm-lean:rate=0.5,codec=int2,norm-codec=int1, go before the flags below, for that row",
        nargs="+",
        metavar=SYNTAX,
    )
    sketch: tuple[str, ...] = option(
        ("count_sketch",), "sketch families, one row each; with settings as sors:transform=dct", nargs="+"
    )
    rate: tuple[float, ...] = option(
        (0.1,),
        "fraction kept, one row each: of the rows by rmm and rmm-lean, of the features by exact",
        nargs="+",
        type=float,
    )
    center: tuple[str, ...] = option(
        ("on",), "subtract the column means before sketching; both: a row each", nargs="+", choices=("on", "off")
    )
    codec: tuple[str, ...] = option(("fp32",), f"how sketches are stored, one row each: {_CODECS}", nargs="+")
    norm_codec: tuple[str, ...] = option(
        ("int2",), "how rmm-lean stores BatchNorm's input, one row each; named as --codec", nargs="+"
    )
    norm_rate: tuple[float, ...] = option(
        (1.0,),
        "share of the rows that rmm-lean keeps of BatchNorm's input, as a sketch, one row each; 1: every row",
        nargs="+",
        type=float,
    )
    x0_codec: tuple[str, ...] = option(
        ("fp32",), "how rmm-lean stores x_0 for the convolutions, one row each; fp32: as it is", nargs="+"
    )
    anchor: tuple[str, ...] = option(
        ("off",),
        "sketch the convolutions' features less their linear fit on x_0 (rmm and rmm-lean); both: a row each",
        nargs="+",
        choices=("on", "off"),
    )
    held: tuple[str, ...] = option(
        ("on",),
        "let rmm-lean rely on the features, which are there in any case: the first Linear is exact and keeps a seed; "
        "off: it keeps a sketch; both: a row each",
        nargs="+",
        choices=("on", "off"),
    )
    exact_bits: tuple[int, ...] = option(
        (2,), "bits exact stores a value in, one row each", nargs="+", type=int, choices=(1, 2, 4, 8)
    )
    budget: tuple[str, ...] = option(
        ("3%",),
        "bytes that rmm-plan and rmm-uniform may keep, one row each: 3%% of the stock model's, or 2GiB",
        nargs="+",
    )
    adaptive: tuple[str, ...] = option(
        ("off",),
        "move each layer's rate, or the learning rate, with the noise that sketching adds (rmm and rmm-lean)",
        nargs="+",
        choices=("off", "rate", "lr"),
    )
    noise_target: tuple[float, ...] = option(
        (0.5,),
        "noise of the sketch over that of the data that --adaptive rate holds, one row each",
        nargs="+",
        type=float,
    )
    ledger: bool = option(
        False, "also write what every row keeps, tensor by tensor: ledger-ROW.txt, .json, .png", action="store_true"
    )
    runs: int = option(3, "runs per row; run i uses seed + i in every row", type=int)
    seed: int = option(0, "seed of the first run (weights, dropout, random splits)", type=int)
    loader: str = option(
        FULL,
        "full: the whole graph at every step; neighbor: sampled neighbourhoods of training nodes; cluster, "
        "random-nodes: parts of the graph, by METIS or at random; saint: random walks; under torchrun any but full",
        choices=tuple(LOADERS),
    )
    fan_out: tuple[int, ...] | None = option(
        None,
        "neighbor: neighbours sampled per node and hop, nearest hop first; -1: all; one number: for as many hops as "
        "there are layers; unset: 10 5 5, or as many of these as there are layers",
        nargs="+",
        type=int,
    )
    batch_size: int = option(1024, "neighbor: training nodes, saint: walks, per batch and process", type=int)
    num_parts: int = option(100, "cluster, random-nodes: parts that the graph is divided into", type=int)
    parts_per_batch: int = option(10, "cluster, random-nodes: parts that make a batch of a process", type=int)
    walk_length: int = option(2, "saint: steps of a random walk", type=int)
    coverage: int = option(50, "saint: samples per node from which probabilities are estimated", type=int)
    edge_weights: str | None = option(
        None,
        "scaled: what a loader drops is made up for by larger weights of the edges that it keeps; plain: the full "
        "graph's weights; unset: plain with random-nodes, scaled with the others",
        choices=("scaled", "plain"),
    )
    eval_chunk: int = option(65536, "nodes evaluated at a time, layer by layer; not with --loader full", type=int)
    workers: int = option(0, "processes that sample, for each that trains; 0: the one that trains", type=int)
    epochs: int = option(1000, "passes over the training nodes; with --loader full a step each", type=int)
    eval_every: int = option(1, "epochs between evaluations; the last epoch is always evaluated", type=int)
    layers: int = option(16, "GCN2 convolutions", type=int)
    hidden: int = option(256, "hidden channels", type=int)
    alpha: float = option(0.5, "weight of the initial residual x_0", type=float)
    theta: float | None = option(
        None, "identity-mapping strength, beta_l = log(theta / l + 1); unset: beta = 1", type=float
    )
    shared_weights: bool = option(False, "one weight for both terms of a convolution", action="boolean")
    dropout: float = option(0.1, "dropout probability", type=float)
    bn_momentum: float = option(
        0.1,
        "weight of the newest batch in BatchNorm's running statistics; with the default, scores lag tens of epochs "
        "behind: for short runs use 1, the statistics of the last full batch",
        type=float,
    )
    lr: float = option(1e-3, "Adam's learning rate", type=float)
    weight_decay: float = option(0.0, "Adam's L2 penalty", type=float)
    clip: float = option(0.5, "largest gradient norm; 0 turns clipping off", type=float)
    device: str = option("auto", "auto (CUDA where there is one) | cpu | cuda | cuda:N")
    threads: int | None = option(None, "CPU threads; unset: PyTorch's default", type=int)

    def __post_init__(self) -> None:
        for name in ("runs", "epochs", "eval_every", "layers", "hidden"):
            check(
                name,
                getattr(self, name) >= 1,
                "be at least 1",
                getattr(self, name),
                "Give a positive integer.",
            )
        for name in ("batch_size", "num_parts", "parts_per_batch", "walk_length", "coverage", "eval_chunk"):
            check(name, getattr(self, name) >= 1, "be at least 1", getattr(self, name), "Give a positive integer.")
        check("workers", self.workers >= 0, "not be negative", self.workers, "Use 0 to sample where one trains.")
        parts = self.parts_per_batch
        rule = f"be at most the number of parts, {self.num_parts}"
        check("parts_per_batch", parts <= self.num_parts, rule, parts, "Give fewer, or raise --num-parts.")
        if self.fan_out is not None:
            hops = all(number == -1 or number >= 1 for number in self.fan_out)
            check("fan_out", hops, "hold positive numbers, or -1 for all", self.fan_out, "Write it as 10 5 5.")
            rule = f"have at most one number for each of {self.layers} layers"
            check("fan_out", len(self.fan_out) <= self.layers, rule, self.fan_out, "Leave out the last ones.")
        if self.threads is not None:
            check("threads", self.threads >= 1, "be at least 1", self.threads, "Leave it out for the default.")
        for name in ("dropout", "alpha"):
            value = getattr(self, name)
            check(name, 0 <= value < 1, "be in [0, 1)", value, "Give a fraction such as 0.1.")
        momentum = self.bn_momentum
        check("bn_momentum", 0 < momentum <= 1, "be in (0, 1]", momentum, "PyTorch's default is 0.1.")
        check("lr", self.lr > 0, "be positive", self.lr, "The protocol uses 1e-3.")
        for name in ("weight_decay", "clip"):
            check(
                name,
                getattr(self, name) >= 0,
                "not be negative",
                getattr(self, name),
                "Use 0 to turn it off.",
            )
        if self.theta is not None:
            check("theta", self.theta > 0, "be positive", self.theta, "Leave it out for beta = 1.")
        for name in ("method", *AXES):
            value = getattr(self, name)
            check(name, len(set(value)) == len(value) > 0, "name different values", value, "Give each one once.")
        check_checkpoints(self.checkpoint_every)
        rows = self._rows()
        twice = [row for number, row in enumerate(rows) if row in rows[:number]]
        check("method", not twice, "give every row once", twice[:1], "Leave one of the two out.")
        check(
            "resume",
            not self.resume or self.out is not None,
            "come with --out",
            self.resume,
            "Name the folder to continue.",
        )

    def out_dir(self) -> Path:
        """The results folder; a new one named after data set and time unless ``out`` is given."""
        if self.out is not None:
            return Path(self.out)
        kind, _, rest = self.dataset.partition(":")
        name = f"{kind}-{Path(rest).stem}" if rest else kind
        return Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"

    def expand(self, data_fingerprint: str, device: str, world_size: int = 1) -> list[RunConfig]:
        """All runs, first run of every row first, so that an interrupted sweep holds complete pairs."""
        taken = {f.name for f in fields(RunConfig)} & {f.name for f in fields(Sweep)}
        own = {name: getattr(self, name) for name in taken} | {
            "data_fingerprint": data_fingerprint,
            "device": device,
            "world_size": world_size,
            "fan_out": self._hops(),
            "edge_weights": self.edge_weights or LOADERS[self.loader].edge_weights,
        }
        own |= dict.fromkeys(set(SETTINGS) - set(LOADERS[self.loader].settings))
        return [
            RunConfig(**(own | row | {"seed": self.seed + run})) for run in range(self.runs) for row in self._rows()
        ]

    def _hops(self) -> tuple[int, ...]:
        if self.fan_out is None:
            return (10, 5, 5)[: self.layers]
        return self.fan_out * self.layers if len(self.fan_out) == 1 else self.fan_out

    def _rows(self) -> list[dict[str, Any]]:
        """The method and the `AXES` of every row of the table; None for a setting the method does not have."""
        rows = []
        for text in self.method:
            name, own = _read(text)
            values = {axis: (own[axis],) if axis in own else getattr(self, axis) for axis in METHODS[name].axes}
            for combination in itertools.product(*values.values()):
                row = {"method": name, **dict.fromkeys(AXES), **dict(zip(values, combination, strict=True))}
                if row["adaptive"] != "rate":
                    row["noise_target"] = None
                switches = ("center", "anchor", "held")
                rows.append(row | {name: None if row[name] is None else row[name] == "on" for name in switches})
        return rows


# Settings that keep small data small; whatever is given on the command line wins over them.
DIGITS: dict[str, Any] = {"layers": 4, "hidden": 64, "epochs": 100}
SMOKE: dict[str, Any] = {
    "layers": 2,
    "hidden": 16,
    "epochs": 3,
    "runs": 2,
    "method": tuple(METHODS),
    "budget": ("60%",),
}


def resolve(given: dict[str, Any]) -> Sweep:
    """Fill what was not given: from `SMOKE` or, for digits, from `DIGITS`, then from the protocol.

    Args:
        given: Field names and values named on the command line.

    Returns:
        The complete configuration.

    Raises:
        ValueError: When a value is out of its range.
    """
    preset: dict[str, Any] = {}
    if given.get("smoke"):
        preset = {"dataset": "digits", **SMOKE}
    elif given.get("dataset") == "digits":
        preset = DIGITS
    if given.keys() & {"codec", "x0_codec"}:  # the default methods shall not overrule them
        preset = {"method": ("baseline", "rmm", "rmm-lean", "exact:rate=0.125")} | preset
    values = {f.name: f.default for f in fields(Sweep) if f.default is not MISSING}
    return Sweep(**(values | preset | given))


def _read(text: str) -> tuple[str, dict[str, Any]]:
    """A method and its own settings, read as the flags of the same names are."""
    parsers = {one.name: one.metadata["parser"] for one in fields(Sweep) if one.name in AXES}
    readers = {name: parser["type"] for name, parser in parsers.items() if "type" in parser}
    choices = {name: parser["choices"] for name, parser in parsers.items() if "choices" in parser}
    return parse_method(text, readers, choices)
