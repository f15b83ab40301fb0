"""A BPE tokenizer of RoBERTa's kind, trained on a task's own text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.harness.errors import require

# In the order of RoBERTa's own vocabulary.
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
PAD = _SPECIAL.index("<pad>")


def train_tokenizer(texts: Iterable[str], vocabulary: int, max_length: int) -> Any:
    """Train on texts; byte-level, so that no text is unknown to it.

    Args:
        texts: What it learns from.
        vocabulary: Entries at most, bytes and special tokens included.
        max_length: Of the model.

    Returns:
        A tokenizer of `transformers`.
    """
    tokenizers = require("tokenizers", extras="benchmarks,transformers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=True)
    return require("transformers", extras="benchmarks,transformers").PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
    )
