"""Encoders with a classification head: a tiny one made here, a local folder, or the hub."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness.errors import BenchmarkError, require
from benchmarks.text.examples import TaskData
from benchmarks.text.network import check_reachable
from benchmarks.text.tokenizer import PAD, train_tokenizer

TINY = "tiny"
_EXTRAS = "benchmarks,transformers"
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class TinySize:
    """A RoBERTa that learns from random weights in minutes on CPU."""

    layers: int = 2
    hidden: int = 128
    heads: int = 4
    intermediate: int = 512
    vocabulary: int = 4000
    positions: int = 512


TINY_SIZE = TinySize()


@dataclass(frozen=True)
class ModelSource:
    """What makes the model of every run of a task.

    Attributes:
        name: As on the command line.
        fingerprint: Equal for equal initial weights, those of the head apart, which are drawn by seed.
        title: For tables.
        tokenizer: Of `transformers`.
        max_length: Tokens it can read.
        make: Takes the number of outputs; a model whose random weights come from PyTorch's default generator.
    """

    name: str
    fingerprint: str
    title: str
    tokenizer: Any
    max_length: int
    make: Callable[[int], nn.Module]

    def build(self, outputs: int, seed: int) -> nn.Module:
        """The model; equal seeds give equal initial weights, whatever the method."""
        torch.manual_seed(seed)
        return self.make(outputs)


def open_model(name: str, data: TaskData, attention_dropout: float | None) -> ModelSource:
    """Find a model and its tokenizer.

    Args:
        name: ``tiny``, a folder, or a name on the hub.
        data: Whose training texts the tokenizer of ``tiny`` learns from.
        attention_dropout: In the place of the model's own; None leaves it.

    Raises:
        BenchmarkError: When `transformers` is missing, or there is no such model.
    """
    transformers = require("transformers", extras=_EXTRAS)
    transformers.logging.set_verbosity_error()  # it reports the new head as a fault
    transformers.logging.disable_progress_bar()
    if name == TINY:
        return _open_tiny(data, attention_dropout)
    return _open_pretrained(name, attention_dropout)


def _open_tiny(data: TaskData, attention_dropout: float | None) -> ModelSource:
    size = TINY_SIZE
    texts = (text for column in data.train.texts for text in column)
    tokenizer = train_tokenizer(texts, size.vocabulary, size.positions)

    def make(outputs: int) -> nn.Module:
        from transformers import RobertaConfig, RobertaForSequenceClassification

        config = RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            intermediate_size=size.intermediate,
            max_position_embeddings=size.positions + PAD + 1,  # RoBERTa counts positions from there
            type_vocab_size=1,
            pad_token_id=PAD,
            bos_token_id=0,
            eos_token_id=2,
            num_labels=outputs,
        )
        _set_attention_dropout(config, attention_dropout)
        return RobertaForSequenceClassification(config)

    fingerprint = _digest([*map(str, asdict(size).items()), tokenizer.backend_tokenizer.to_str()])
    title = f"RoBERTa of {size.layers} layers of {size.hidden}, random weights, {len(tokenizer)} BPE tokens"
    return ModelSource(TINY, fingerprint, title, tokenizer, size.positions, make)


def _open_pretrained(name: str, attention_dropout: float | None) -> ModelSource:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise BenchmarkError(f"'model' must exist (got '{name}', no such folder). Give tiny, a folder or a hub name.")
    given = str(folder) if folder.is_dir() else name
    local = folder.is_dir() or _is_cached(name)
    if not local:
        check_reachable("model", name, "Give tiny or a folder.")
        print(f"Fetching {name} from the hub", file=sys.stderr)
    try:
        config = AutoConfig.from_pretrained(given, local_files_only=local)
        tokenizer = AutoTokenizer.from_pretrained(given, local_files_only=local)
        _set_attention_dropout(config, attention_dropout)

        def make(outputs: int) -> nn.Module:
            config.num_labels = outputs
            return AutoModelForSequenceClassification.from_pretrained(
                given,
                config=config,
                dtype=torch.float32,
                local_files_only=local,
                ignore_mismatched_sizes=True,  # the head of another task
            )

        make(1)  # a folder without weights shall fail now, and not after the runs before it
    except BenchmarkError:
        raise
    except Exception as error:  # of damaged files, each library behind it raises its own kinds
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise BenchmarkError(
            f"'model' must be something that transformers can load for classification (got '{name}': "
            f"{said}). Give tiny, a hub name, or a folder that save_pretrained wrote, with the "
            "tokenizer's files."
        ) from error
    positions = getattr(config, "max_position_embeddings", None) or tokenizer.model_max_length
    if config.model_type == "roberta":
        positions -= config.pad_token_id + 1
    fingerprint = _digest_folder(folder) if folder.is_dir() else str(getattr(config, "_commit_hash", None))[:16]
    return ModelSource(
        name,
        fingerprint,
        f"{config.model_type} from {name}",
        tokenizer,
        min(positions, tokenizer.model_max_length),
        make,
    )


def _is_cached(name: str) -> bool:
    """Whether the hub's copy is on this machine: then nothing is asked over the network."""
    find = require("huggingface_hub", extras=_EXTRAS).try_to_load_from_cache
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    try:
        return isinstance(find(name, "config.json"), str) and any(isinstance(find(name, file), str) for file in weights)
    except ValueError:  # not a name that the hub can have
        return False


def _set_attention_dropout(config: Any, value: float | None) -> None:
    if value is None:
        return
    names = [name for name in ("attention_probs_dropout_prob", "attention_dropout") if hasattr(config, name)]
    if not names:
        raise BenchmarkError(
            f"'attention_dropout' must be left out for {config.model_type} (got {value}). It has no such setting."
        )
    setattr(config, names[0], value)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _digest_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHTS or path.name in ("config.json", "tokenizer.json", "vocab.txt", "merges.txt"):
            with open(path, "rb") as file:
                while chunk := file.read(2**24):
                    digest.update(chunk)
    return digest.hexdigest()[:16]
