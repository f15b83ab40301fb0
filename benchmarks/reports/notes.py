"""What a reader needs to know to read a report: how it was run, where, and how that differs from the paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.reports import paper
from benchmarks.reports.rows import Record


def of_runs(records: Sequence[Record], epochs: int = paper.EPOCHS) -> list[str]:
    """The points that every report of harness runs has; ``epochs`` are those that the paper's have."""
    return [
        settings(records),
        "Data: " + "; ".join(dict.fromkeys(record["data"]["source"] for record in records)) + ".",
        *differences(records, epochs),
        environments(record["environment"] for record in records),
    ]


def settings(records: Sequence[Record]) -> str:
    """The settings of the runs; where they differ between tasks, all of them."""
    configs = [record["config"] for record in records]

    def values(name: str) -> str:
        return ", ".join(f"{one:g}" if isinstance(one, float) else str(one) for one in _found(configs, name))

    words = [
        ("model", "{}"), ("epochs", "epochs: {}"), ("batch_size", "batches of {}"), ("lr", "learning rate {}"),
        ("max_length", "at most {} tokens"), ("precision", "{}"), ("sketch", "sketch {}"), ("codec", "stored as {}"),
    ]  # fmt: skip
    parts = [text.format(values(name)) for name, text in words if values(name)]
    parts += [{True: "centred", False: "not centred"}[centred] for centred in _found(configs, "center")]
    return f"Settings: {'; '.join(parts)}; seeds {values('seed')}."


def differences(records: Sequence[Record], epochs: int = paper.EPOCHS) -> list[str]:
    """Each way in which the runs differ from the paper's, in words."""
    configs = [record["config"] for record in records]
    found = []
    if others := _others(configs, "model", paper.MODEL):
        found.append(
            f"The model is {others}, not the pretrained {paper.MODEL} that the paper fine-tunes: "
            "compare differences between rows with the paper's, not the scores themselves."
        )
    if steps := _others(configs, "max_steps", None):
        found.append(f"Runs stop after at most {steps} steps, the paper's do not.")
    if others := _others(configs, "epochs", epochs):
        found.append(f"Epochs of training: {others}; the paper's: {epochs}.")
    if examples := _others(configs, "train_examples", None):
        found.append(f"Only {examples} training examples of a task are used.")
    if examples := _others(configs, "eval_examples", None):
        found.append(f"Scores are over {examples} evaluation examples of a task only.")
    sketched = [config for config in configs if config.get("sketch") is not None]
    if families := _others(sketched, "sketch", "gaussian"):
        found.append(f"The paper's S is Gaussian where it names no other; rows named otherwise are {families}.")
    if any(config.get("center") for config in sketched):
        found.append("Inputs are centred before they are sketched, with an exact mean term; the paper does not centre.")
    if codecs := _others(sketched, "codec", "fp32"):
        found.append(f"Sketches are stored as {codecs}; the paper stores them as they are.")
    return found


def environments(described: Iterable[dict[str, Any]]) -> str:
    """Devices, threads, versions and commits that the numbers were made with."""
    return "Made on: " + "; ".join(dict.fromkeys(map(_environment, described))) + "."


def not_run(tasks: Sequence[str], present: Sequence[str]) -> str | None:
    """Names the paper's tasks that have no runs."""
    missing = [paper.TITLES[task] for task in tasks if task not in present]
    return f"Not run: {', '.join(missing)}." if missing else None


def _others(configs: Sequence[dict[str, Any]], name: str, usual: Any) -> str:
    return ", ".join(str(value) for value in _found(configs, name) if value != usual)


def _found(configs: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return list(dict.fromkeys(config[name] for config in configs if config.get(name) is not None))


def _environment(described: dict[str, Any]) -> str:
    packages = [f"{name} {version}" for name, version in described["packages"].items() if version]
    commit = (described["git_sha"] or "unknown")[:12] + (" with uncommitted changes" if described["git_dirty"] else "")
    return f"{described['device']}, {described['threads']} threads, {', '.join(packages)}, commit {commit}"
