"""Tiny models of every family, with random weights, without dropout, and inputs for them."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaConfig,
    DebertaForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

VOCABULARY, HIDDEN, BATCH, LENGTH = 61, 32, 4, 12

_BERT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 32,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """How to build a model, how many linear layers it has, and how many of them are its output head."""

    build: Callable[[], Module]
    linear: int
    head: int
    generates: bool = False


def _deberta(config: type, model: type) -> Callable[[], Module]:
    return lambda: model(
        config(
            **_BERT,
            pooler_dropout=0.0,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            pad_token_id=0,
        )
    )


FAMILIES = {
    "bert": Family(lambda: BertForSequenceClassification(BertConfig(**_BERT)), 14, 1),
    "bert-mlm": Family(lambda: BertForMaskedLM(BertConfig(**_BERT)), 14, 2, generates=True),
    "roberta": Family(
        lambda: RobertaForSequenceClassification(RobertaConfig(**{**_BERT, "max_position_embeddings": 34})), 14, 2
    ),
    "distilbert": Family(
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(
                vocab_size=VOCABULARY,
                dim=HIDDEN,
                n_layers=2,
                n_heads=2,
                hidden_dim=64,
                max_position_embeddings=32,
                dropout=0.0,
                attention_dropout=0.0,
                seq_classif_dropout=0.0,
            )
        ),
        14,
        2,
    ),
    "albert": Family(
        lambda: AlbertForSequenceClassification(AlbertConfig(**_BERT, embedding_size=16, classifier_dropout_prob=0.0)),
        9,
        1,
    ),
    "deberta": Family(_deberta(DebertaConfig, DebertaForSequenceClassification), 14, 2),
    "deberta-v2": Family(_deberta(DebertaV2Config, DebertaV2ForSequenceClassification), 18, 2),
    "gpt2": Family(lambda: GPT2LMHeadModel(GPT2Config(**_GPT2)), 9, 1, generates=True),
    "gpt2-classifier": Family(lambda: GPT2ForSequenceClassification(GPT2Config(**_GPT2)), 9, 1),
    "t5": Family(
        lambda: T5ForConditionalGeneration(
            T5Config(
                vocab_size=VOCABULARY,
                d_model=HIDDEN,
                d_kv=16,
                d_ff=64,
                num_layers=2,
                num_heads=2,
                dropout_rate=0.0,
                feed_forward_proj="gated-gelu",
                decoder_start_token_id=0,
            )
        ),
        37,
        1,
        generates=True,
    ),
    "llama": Family(
        lambda: LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY,
                hidden_size=HIDDEN,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=32,
                tie_word_embeddings=True,
            )
        ),
        15,
        1,
        generates=True,
    ),
}


def build(name: str, seed: int = 0) -> Module:
    torch.manual_seed(seed)
    return FAMILIES[name].build().train()


def batch(name: str, seed: int = 1, size: int = BATCH) -> dict[str, Tensor]:
    """Token numbers with a padded last row, and labels."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (size, LENGTH), generator=generator)
    mask = torch.ones_like(ids)
    mask[-1, LENGTH // 2 :] = 0
    labels = ids.clone() if FAMILIES[name].generates else torch.randint(0, 2, (size,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the loss by parameter name."""
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def checkpointed(model: Module, use_reentrant: bool) -> Module:
    """Switch activation checkpointing on."""
    # Older releases of transformers know the second name alone, newer ones warn of it.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": use_reentrant})
    return model
