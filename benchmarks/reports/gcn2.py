"""What Table 5 and Figure 7 have in common: how GCN2 is trained on ogbn-arxiv, and what a reader has to know of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.harness.config import Sweep
from benchmarks.harness.errors import BenchmarkError
from benchmarks.harness.options import words
from benchmarks.harness.rows import Record, Row, group_rows
from benchmarks.reports import notes, paper
from benchmarks.reports.run import Flags

FOLDER = "arxiv"
DENSE = ("gaussian", "rademacher")
_LEAN = "rmm-lean:rate=0.55,codec=int2,norm-codec=int1,x0-codec=int2"
# The paper's rows, then sketches that stand in for a dense S, then this package's own. All else is the harness's
# default, which is the published protocol.
FLAGS: Flags = {
    "method": (
        "baseline", "exact:rate=0.125,exact-bits=2", "rmm:sketch=gaussian,center=off",
        "rmm:sketch=rademacher,center=off", "rmm:sketch=block_rademacher,center=off",
        "rmm:sketch=count_sketch,center=off", "rmm:sketch=count_sketch,center=on", _LEAN,
    ),
    "rate": (str(paper.TABLE5_RATE),),
    "runs": ("3",),
}  # fmt: skip
SMOKE: Flags = {"runs": ("2",)}
# Runs can stand in one table only where these agree. The number of epochs may differ: see `Runs`.
SHARED = (
    "data_fingerprint", "layers", "hidden", "alpha", "theta", "shared_weights", "dropout", "bn_momentum", "lr",
    "weight_decay", "clip",
)  # fmt: skip
_PROTOCOL = {one.name: one.default for one in fields(Sweep)}


@dataclass(frozen=True)
class Runs:
    """The runs of a folder.

    Attributes:
        trained: Rows of those with most epochs: their accuracies are compared.
        timed: Rows of the others, of which only what an epoch costs is shown.
        records: All of them.
    """

    trained: dict[Row, list[Record]]
    timed: dict[Row, list[Record]]
    records: Sequence[Record]

    @classmethod
    def of(cls, records: Sequence[Record]) -> Runs:
        """Sort runs.

        Raises:
            BenchmarkError: When they do not belong together.
        """
        for name in SHARED:
            found = list(dict.fromkeys(record["config"][name] for record in records))
            if len(found) > 1:
                raise BenchmarkError(
                    f"'out' must hold runs of one {name} (got {found[0]} and {found[1]}). Choose another --out."
                )
        most = max(record["config"]["epochs"] for record in records)
        trained = [record for record in records if record["config"]["epochs"] == most]
        rest = [record for record in records if record["config"]["epochs"] < most]
        return cls(group_rows(trained), group_rows(rest), records)

    @property
    def first(self) -> Record:
        """One of those whose accuracies are compared; of the others it differs in method, seed and epochs."""
        return next(iter(self.trained.values()))[0]


def paper_row(record: Record) -> str | None:
    """The row of the paper's Table 5 that a run belongs to; None for what the paper does not have."""
    config = record["config"]
    if config["method"] == "baseline":
        return "Baseline"
    if config["method"] == "exact":
        return "EXACT"
    as_in_the_paper = (
        config["method"] == "rmm" and config["rate"] == paper.TABLE5_RATE and config["codec"] == "fp32"
        and not config["center"] and not config["anchor"] and config["adaptive"] in (None, "off")
    )  # fmt: skip
    names = {"gaussian": "RMM Gauss", "rademacher": "RMM Rademacher"}
    return names.get(config["sketch"]) if as_in_the_paper else None


def is_the_papers_data(record: Record) -> bool:
    """Whether accuracies can be set beside the paper's: the graph and the features are OGB's."""
    return record["dataset"]["name"] == _PROTOCOL["dataset"] and not record["features_are_stand_ins"]


def median_of(group: Sequence[Record], name: str) -> float | None:
    """Median of a result over the runs that have it; None where none has."""
    values = [value for record in group if (value := record["results"][name]) is not None]
    return statistics.median(values) if values else None


def common_notes(runs: Runs) -> list[str | None]:
    """How the runs were made, and each way in which they differ from the paper's, in words."""
    return [
        _setting(runs),
        *_differences(runs),
        _missing(runs),
        "The authors' public code draws the same S at every step on a GPU, since it makes its generator anew with one "
        "default seed: a bias, not noise. Here every step draws a fresh S.",
        notes.environments(record["environment"] for record in runs.records),
    ]


def _setting(runs: Runs) -> str:
    data, config = runs.first["dataset"], runs.first["config"]
    seeds = sorted({record["config"]["seed"] for group in runs.trained.values() for record in group})
    return (
        f"Settings: {data['title']}, {data['num_nodes']:,} nodes, {data['num_edges']:,} undirected edges, "
        f"{data['num_features']} features, {data['num_classes']} classes, {data['split']}; GCN2, {config['layers']} "
        f"layers of {config['hidden']}; {config['epochs']} epochs, evaluated every {config['eval_every']}; seeds "
        f"{', '.join(map(str, seeds))}."
    )


def _differences(runs: Runs) -> list[str]:
    first = runs.first
    config, found = first["config"], []
    if first["dataset"]["name"] != _PROTOCOL["dataset"]:
        found.append(f"The data are {first['dataset']['title']}, not ogbn-arxiv.")
    elif first["features_are_stand_ins"]:
        found.append("The graph, the labels and the split are ogbn-arxiv's; the features are stand-ins, not OGB's.")
    if found:
        found.append("So compare differences between rows with the paper's, not the accuracies themselves.")
    changed = [
        f"{name.replace('_', ' ')} {words(config[name])} (the protocol's: {words(_PROTOCOL[name])})"
        for name in ("epochs", "eval_every", *SHARED[1:])
        if config[name] != _PROTOCOL[name]
    ]
    if changed:
        found.append(f"Other than in the published protocol: {'; '.join(changed)}.")
    counts = sorted({len(group) for group in runs.trained.values()})
    if counts != [_PROTOCOL["runs"]]:
        found.append(f"Runs of a row: {', '.join(map(str, counts))}; the paper's: {_PROTOCOL['runs']}.")
    exact: list[dict[str, Any]] = [
        record["config"] for group in runs.trained.values() for record in group if paper_row(record) == "EXACT"
    ]
    for rate, bits in dict.fromkeys((one["rate"], one["exact_bits"]) for one in exact):
        found.append(
            f"EXACT here keeps {rate:g} of the features in {bits} bits; the setting of the paper's row is "
            f"{paper.NOT_AT_HAND}."
        )
    return [" ".join(found)] if found else []


def _missing(runs: Runs) -> str | None:
    present = {paper_row(group[0]) for group in runs.trained.values()}
    missing = [name for name in paper.TABLE5 if name not in present]
    if not missing:
        return None
    text = f"Not trained: the paper's {', '.join(missing)}."
    stand_ins = [
        name
        for name in ("block_rademacher", "count_sketch")
        if any(group[0]["config"]["sketch"] == name for group in runs.trained.values())
    ]
    if stand_ins and any(name.startswith("RMM") for name in missing):
        text += f" In the place of a dense S stand {' and '.join(stand_ins)}, see what each costs."
    return text
