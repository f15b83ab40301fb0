"""What a reader needs to know to read the tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness.notes import resumed_note


def format_notes(records: Sequence[dict[str, Any]]) -> str:
    """A Markdown list: definitions first, then what is particular to these runs, then where they were made."""
    notes = [_score(records), _saved(), _costs(records), _methods(records), _constant(records), resumed_note(records)]
    notes.append(_environment(records))
    return "\n".join(f"- {note}" for note in notes if note)


def _score(records: Sequence[dict[str, Any]]) -> str:
    average = (
        " Average: mean of the tasks' means; its difference is that of each seed averaged over the tasks, over the "
        "seeds that all tasks have."
        if len({record["config"]["task"] for record in records}) > 1
        else ""
    )
    return (
        "Score: on the development set (GLUE's test labels are not public) at the best evaluation, mean +- standard "
        "deviation over runs. Difference: mean over paired seeds, in brackets its 95 % interval (Student's t). Pairs "
        f"share initial weights and the order of the batches; their dropout masks may differ.{average}"
    )


def _saved() -> str:
    return (
        "Saved: bytes that one training step keeps between forward and backward, by the package's ledger, on the first "
        "examples of the training file; parameters and batch not counted. In brackets: as a share of the baseline's."
    )


def _costs(records: Sequence[dict[str, Any]]) -> str:
    definitions = dict.fromkeys(record["results"]["peak_definition"] for record in records)
    return (
        f"Peak memory: {'; of other runs: '.join(definitions)}. ms/step: median training step, without evaluation"
        + ("; watching memory is part of it." if records[0]["config"]["track_memory"] else ".")
    )


def _methods(records: Sequence[dict[str, Any]]) -> str | None:
    configs = [record["config"] for record in records if record["config"]["rate"] is not None]
    if not configs:
        return None
    excluded = configs[0]["exclude"]
    rows = "rows of tokens, padding left out" if configs[0]["row_mask"] else "rows"
    which = "All linear layers" if excluded is None else f"Linear layers but those named {excluded}"
    lean = any(config["method"] == "rmm-lean" for config in configs)
    return (
        f"{which} keep a sketch of that share of their {rows}, stored as the word after the rate says (fp32: as it "
        "is); layers that read one tensor, such as query, key and value, share one sketch."
    ) + (" rmm-lean: LayerNorm, GELU and dropout keep a few bits besides." if lean else "")


def _constant(records: Sequence[dict[str, Any]]) -> str | None:
    found = [record for record in records if record["results"]["constant_predictions"]]
    if not found:
        return None
    return (
        f"{len(found)} of {len(records)} runs predict one and the same for every example at their best evaluation; "
        "correlations of such predictions count as 0."
    )


def _environment(records: Sequence[dict[str, Any]]) -> str:
    record = records[0]
    environment, packages = record["environment"], record["environment"]["packages"]
    commits = dict.fromkeys(_commit(record["environment"]) for record in records)
    return (
        f"{environment['device']}, {environment['threads']} threads, torch {packages['torch']}, transformers "
        f"{packages['transformers']}, commit {' and '.join(commits)}. Data: {record['data']['source']}."
    )


def _commit(environment: dict[str, Any]) -> str:
    return (environment["git_sha"] or "unknown")[:12] + (
        " with uncommitted changes" if environment["git_dirty"] else ""
    )
