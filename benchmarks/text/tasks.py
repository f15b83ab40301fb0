"""The nine GLUE tasks: where their data stand, what is predicted, and fairseq's settings for RoBERTa."""

from __future__ import annotations

from dataclasses import dataclass

# The one label of a regression is its score.
SCORE_RANGE = (0.0, 5.0)


@dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
        name: As on the command line, and of the hub's configuration.
        folder: Of the TSV files in GLUE's own distribution.
        text: Column names of the one or two texts in the TSV files.
        hub_text: The same on the hub.
        label: Column name of the label in the TSV files.
        labels: What it can say, in the order of the hub's class numbers; empty for a regression.
        metrics: What is computed, by name; see `metrics.compute`.
        headline: The one that ranks evaluations.
        lr: fairseq's learning rate.
        batch_size: fairseq's, and 16 for QNLI, as in the paper.
        warmup_share: fairseq's warm-up steps over its steps in all.
        columns: Names of a file without a header line; None where the first line has them.
        evaluations: Names of the evaluation sets: file stems in the TSV folder.
        hub_evaluations: The same on the hub: names of splits.
    """

    name: str
    folder: str
    text: tuple[str, ...]
    hub_text: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    headline: str
    lr: float
    batch_size: int
    warmup_share: float
    columns: tuple[str, ...] | None = None
    evaluations: tuple[str, ...] = ("dev",)
    hub_evaluations: tuple[str, ...] = ("validation",)

    @property
    def is_regression(self) -> bool:
        """Whether a score is predicted and not a class."""
        return not self.labels

    @property
    def num_outputs(self) -> int:
        """Outputs of the classification head."""
        return len(self.labels) or 1


_BINARY = ("0", "1")
_ENTAILMENT = ("entailment", "not_entailment")
_PAIR = ("sentence1", "sentence2")

# Learning rate, batch size and warm-up share are those of fairseq's examples/roberta/config/finetuning.
TASKS: dict[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "cola", "CoLA", ("sentence",), ("sentence",), "label", _BINARY,
            ("matthews",), "matthews", 1e-5, 16, 320 / 5336, columns=("source", "label", "mark", "sentence"),
        ),
        GlueTask(
            "mnli", "MNLI", _PAIR, ("premise", "hypothesis"), "gold_label", ("entailment", "neutral", "contradiction"),
            ("accuracy",), "accuracy", 1e-5, 32, 7432 / 123873, evaluations=("dev_matched", "dev_mismatched"),
            hub_evaluations=("validation_matched", "validation_mismatched"),
        ),
        GlueTask(
            "mrpc", "MRPC", ("#1 String", "#2 String"), _PAIR, "Quality", _BINARY,
            ("accuracy", "f1"), "accuracy", 1e-5, 16, 137 / 2296,
        ),
        GlueTask(
            "qnli", "QNLI", ("question", "sentence"), ("question", "sentence"), "label", _ENTAILMENT,
            ("accuracy",), "accuracy", 1e-5, 16, 1986 / 33112,
        ),
        GlueTask(
            "qqp", "QQP", ("question1", "question2"), ("question1", "question2"), "is_duplicate", _BINARY,
            ("accuracy", "f1"), "accuracy", 1e-5, 32, 28318 / 113272,
        ),
        GlueTask(
            "rte", "RTE", _PAIR, _PAIR, "label", _ENTAILMENT, ("accuracy",), "accuracy", 2e-5, 16, 122 / 2036,
        ),
        GlueTask(
            "sst2", "SST-2", ("sentence",), ("sentence",), "label", _BINARY,
            ("accuracy",), "accuracy", 1e-5, 32, 1256 / 20935,
        ),
        GlueTask(
            "stsb", "STS-B", _PAIR, _PAIR, "score", (), ("pearson", "spearman"), "mean", 2e-5, 16, 214 / 3598,
        ),
        # Not in fairseq's table: RTE's settings, a task of the same kind and size.
        GlueTask(
            "wnli", "WNLI", _PAIR, _PAIR, "label", _BINARY, ("accuracy",), "accuracy", 2e-5, 16, 122 / 2036,
        ),
    )
}  # fmt: skip
