"""What a reader needs to know to read the table."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.methods import METHODS
from benchmarks.harness.rows import Record


def format_notes(records: Sequence[Record]) -> str:
    """A Markdown list: definitions first, then what is particular to the methods shown, then where it was made."""
    first = records[0]
    methods = list(dict.fromkeys(record["config"]["method"] for record in records))
    notes = [_stand_ins(first), _accuracy(first), _settings(records), _saved(first), _theory(first), _costs(first)]
    notes += [METHODS[name].note for name in methods if name in METHODS]
    notes += [_loading(first), resumed_note(records)]
    notes += [_offload(first) if "offload" in methods else None, _environment(first)]
    return "\n".join(f"- {note}" for note in notes if note)


def _stand_ins(record: Record) -> str | None:
    if not record["features_are_stand_ins"]:
        return None
    return (
        "The features are stand-ins made from GPT predictions, not OGB's: not comparable with "
        "published ogbn-arxiv numbers."
    )


def resumed_note(records: Sequence[Record]) -> str | None:
    """What resuming means for the costs; None where no run was resumed."""
    count = sum(bool(record["results"].get("resumptions")) for record in records)
    if not count:
        return None
    return (
        f"{count} of {len(records)} runs went on from a checkpoint: seconds are those of all parts, peak memory is the "
        "largest of them, all else is as if the run had not stopped."
    )


def _accuracy(record: Record) -> str:
    return (
        "Test accuracy at the best validation epoch, mean +- standard deviation over runs, "
        f"{record['dataset']['split']}; difference: mean over paired seeds, in brackets its 95 % interval "
        "(Student's t). Pairs share weights and split; their dropout masks may differ, since sketches draw from the "
        "same generator."
    )


def _settings(records: Sequence[Record]) -> str | None:
    configs = [record["config"] for record in records]
    sketched = any(config["sketch"] is not None for config in configs)
    rates = "Rates: rmm and rmm-lean keep that share of the rows, exact that share of the features: compare bytes."
    parts = [rates] if any(config["rate"] is not None for config in configs) else []
    if sketched:
        parts.append(
            "Sketches are centred unless said otherwise: the column means are subtracted first, their exact term is "
            "added back. The word after a rate says how it is stored (fp32: as it is)."
        )
    if any(config.get("anchor") for config in configs):
        parts.append("Anchored: what is sketched is the residual of a linear fit on x_0, whose term is added back.")
    if any(config.get("held") for config in configs):
        parts.append("The first Linear of rmm-lean reads dropout of the features, keeps a seed and is exact.")
    return " ".join(parts) or None


def _saved(record: Record) -> str:
    on_cpu = record["config"]["device"] == "cpu"
    mask = " On CPU stock dropout keeps an fp32 mask, four times CUDA's." if on_cpu else ""
    return (
        "Saved in all: bytes that the forward pass of a training step leaves on the device for backward, whatever "
        "holds them; parameters, features and adjacency not counted. By convolutions: what these give autograd to "
        f"keep, each storage once, where it is first kept.{mask}"
    )


def _theory(record: Record) -> str:
    stock = record["theory"]["stock_bytes_per_node_layer"]
    return (
        f"Theory: bytes a block keeps for each node by construction, against stock PyG's {stock:g}; in fp32, the "
        "dropout mask one byte as on CUDA, x_0 shared out among the layers where it is kept once."
    )


def _costs(record: Record) -> str:
    epoch = "all steps and the waiting for their batches" if record["results"].get("sampling") else "training step"
    return (
        f"Peak memory: {record['results']['peak_definition']}. Seconds per epoch: median {epoch}, evaluation "
        "not counted; in brackets as a share of the baseline's."
    )


def _loading(record: Record) -> str | None:
    sampling, config = record["results"].get("sampling"), record["config"]
    if not sampling:
        return None
    rows = ", ".join(f"{number:,.0f}" for number in sampling["rows_per_step"])
    weights = (
        "its own over the probability that the loader keeps it" if config["edge_weights"] == "scaled" else "its own"
    )
    return (
        f"Sampled: {sampling['steps_per_epoch']} steps an epoch in each of {config['world_size']} processes; a step of "
        f"the first has on average {sampling['trained_rows_per_step']:,.0f} trained rows and, from the first Linear to "
        f"the last, {rows} rows. Saved and peak are this process's, saved that of its first batch, whose features and "
        f"matrices are not counted. Weight of an edge: {weights}. Evaluation: the full graph, exact, in chunks of "
        f"{config['eval_chunk']:,} nodes."
    )


def _offload(record: Record) -> str | None:
    if record["config"]["device"] != "cpu":
        return None
    return "On CPU offload moves nothing, and keeps what the baseline keeps: it is of use on CUDA only."


def _environment(record: Record) -> str:
    environment, packages = record["environment"], record["environment"]["packages"]
    return (
        f"{environment['device']}, {environment['threads']} threads, torch {packages['torch']}, PyG "
        f"{packages['torch-geometric']}, commit {(environment['git_sha'] or 'unknown')[:12]}"
        f"{' with uncommitted changes' if environment['git_dirty'] else ''}."
    )
