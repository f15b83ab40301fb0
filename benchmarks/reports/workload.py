"""Training steps of an encoder at a given shape: memory and time need no trained weights and no text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.reports.rows import Row
from benchmarks.text.methods import apply_method

BASE = "roberta-base-random"
TINY = "tiny"
ATTENTIONS = ("eager", "sdpa")
# RoBERTa's positions begin behind its padding token.
_PAD = 1
_FIRST_TOKEN = 5
_SIZES: dict[str, dict[str, int]] = {
    # All that is not named is of base size in RobertaConfig itself.
    BASE: {"vocab_size": 50265, "max_position_embeddings": 514},
    TINY: {
        "vocab_size": 500, "max_position_embeddings": 514, "hidden_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 128,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Workload:
    """A training step.

    Attributes:
        model: ``roberta-base-random``, ``tiny``, or a folder or hub name whose configuration gives the sizes.
        attention: ``eager``, which keeps the attention matrices, or ``sdpa``.
        batch_size: Sequences.
        length: Tokens of each; none is padding.
    """

    model: str
    attention: str
    batch_size: int
    length: int

    @property
    def title(self) -> str:
        """The model in words."""
        named = {BASE: "roberta-base", TINY: "a tiny RoBERTa"}.get(self.model, f"the sizes of {self.model}")
        return f"{named} with random weights, {self.attention} attention"

    def build(self, device: torch.device) -> nn.Module:
        """A classifier with two outputs and random weights, in training mode.

        Raises:
            BenchmarkError: When transformers is missing, the configuration cannot be had, or the length is too long.
        """
        transformers = require("transformers", extras="benchmarks,transformers")
        config = self._config(transformers)
        room = getattr(config, "max_position_embeddings", None)
        if room is not None and config.model_type == "roberta":
            room -= config.pad_token_id + 1
        if room is not None and self.length > room:
            raise BenchmarkError(f"'length' must be at most {room} for {self.model} (got {self.length}). Shorten it.")
        make = transformers.AutoModelForSequenceClassification.from_config
        return make(config, attn_implementation=self.attention).to(device).train()

    def inputs(self, model: nn.Module, device: torch.device) -> dict[str, Tensor]:
        """Random tokens and labels."""
        shape = (self.batch_size, self.length)
        return {
            "input_ids": torch.randint(_FIRST_TOKEN, model.config.vocab_size, shape, device=device),
            "attention_mask": torch.ones(shape, dtype=torch.int64, device=device),
            "labels": torch.randint(2, shape[:1], device=device),
        }

    def _config(self, transformers: Any) -> Any:
        if self.model in _SIZES:
            return transformers.RobertaConfig(
                **_SIZES[self.model], type_vocab_size=1, pad_token_id=_PAD, bos_token_id=0, eos_token_id=2
            )
        try:
            return transformers.AutoConfig.from_pretrained(self.model, num_labels=2)
        except (OSError, ValueError) as error:
            raise BenchmarkError(
                f"'model' must be {BASE}, {TINY}, a folder or a hub name that can be reached "
                f"(got '{self.model}': {str(error).splitlines()[0]}). {BASE} needs neither."
            ) from error


class Loss(nn.Module):
    """A model whose output is its loss.

    Args:
        model: Of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.model(**inputs).loss


@dataclass(frozen=True)
class Way:
    """How a row trains, in the fields that the harness reads of a run."""

    method: str
    rate: float | None
    sketch: str | None
    codec: str | None
    center: bool
    norm_codec: str = "int2"
    act_codec: str = "int4"
    exclude: str | None = None
    row_mask: bool = False


@contextmanager
def applied(model: nn.Module, row: Row, center: bool) -> Iterator[Loss]:
    """The model trained in the row's way, as in the harness; afterwards it is as it was, with the same parameters."""
    from rmm_gnn import revert_rmm

    apply_method(model, Way(*row, center=center))
    try:
        yield Loss(model)
    finally:
        revert_rmm(model)
