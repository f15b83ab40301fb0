"""The tiny model and its tokenizer, local folders, and what equal seeds share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.harness import errors
from benchmarks.harness.errors import BenchmarkError
from benchmarks.text.data import encode
from benchmarks.text.examples import Examples, TaskData
from benchmarks.text.models import open_model
from benchmarks.text.tasks import TASKS

transformers = pytest.importorskip("transformers")

TEXTS = ["the film is wonderful", "the film is dull", "a story that remains with you"] * 20
PAIRS = TaskData(TASKS["rte"], Examples((TEXTS, TEXTS[::-1]), [0, 1, 0] * 20), (), "here")
SINGLE = TaskData(TASKS["sst2"], Examples((TEXTS,), [0, 1, 0] * 20), (), "here")


def test_the_tokenizer_reads_texts_as_roberta_does():
    tokenizer = open_model("tiny", PAIRS, None).tokenizer
    single, pair = tokenizer("the film"), tokenizer("the film", "is dull")
    assert set(single) == {"input_ids", "attention_mask"}
    words = tokenizer.convert_ids_to_tokens
    assert words(single["input_ids"]) == ["<s>", "Ġthe", "Ġfilm", "</s>"]
    assert words(pair["input_ids"]) == ["<s>", "Ġthe", "Ġfilm", "</s>", "</s>", "Ġis", "Ġdull", "</s>"]
    assert tokenizer.pad_token_id == 1
    # Bytes, so that no text is unknown.
    assert tokenizer.decode(tokenizer("naïve 映画 ☃")["input_ids"], skip_special_tokens=True).strip() == "naïve 映画 ☃"


def test_long_examples_are_cut_and_the_longer_text_first():
    tokenizer = open_model("tiny", PAIRS, None).tokenizer
    examples = Examples((["the film " * 50, "a"], ["is dull", "b"]), [0, 1])
    encoded = encode(TASKS["rte"], examples, tokenizer, 16)
    assert encoded.lengths.tolist()[0] == 16 and encoded.types is None
    first = tokenizer.convert_ids_to_tokens(encoded.tokens[:16].tolist())
    assert first[-3:] == ["Ġis", "Ġdull", "</s>"]


def test_scores_become_targets_between_0_and_1():
    tokenizer = open_model("tiny", PAIRS, None).tokenizer
    encoded = encode(TASKS["stsb"], Examples((["a", "b"], ["c", "d"]), [5.0, 1.25]), tokenizer, 16)
    assert encoded.targets.tolist() == [1.0, 0.25] and encoded.targets.dtype == torch.float32
    assert encoded.labels.tolist() == [5.0, 1.25]


def test_equal_seeds_give_equal_weights():
    source = open_model("tiny", SINGLE, None)
    weights = [torch.cat([p.flatten() for p in source.build(2, seed).parameters()]) for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert open_model("tiny", SINGLE, None).fingerprint == source.fingerprint
    other = TaskData(TASKS["sst2"], Examples((["wholly other words"],), [0]), (), "here")
    assert open_model("tiny", other, None).fingerprint != source.fingerprint


def test_attention_dropout():
    for given, expected in ((None, 0.1), (0.0, 0.0), (0.2, 0.2)):
        assert open_model("tiny", SINGLE, given).build(2, 0).config.attention_probs_dropout_prob == expected


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small BERT with its tokenizer, saved."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, num_labels=3,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_local_folder(folder: Path):
    source = open_model(str(folder), PAIRS, 0.0)
    assert (source.max_length, source.title) == (40, f"bert from {folder}")
    first, second, third = (source.build(outputs, seed) for outputs, seed in ((2, 0), (2, 1), (1, 0)))
    assert first.classifier.weight.shape == (2, 16) and third.classifier.weight.shape == (1, 16)
    assert first.config.attention_probs_dropout_prob == 0.0
    # The saved weights, and a new head drawn by seed in the place of one with three outputs.
    name = "bert.encoder.layer.1.intermediate.dense.weight"
    saved = transformers.BertForSequenceClassification.from_pretrained(folder).get_parameter(name)
    assert torch.equal(first.get_parameter(name), saved) and torch.equal(second.get_parameter(name), saved)
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    assert torch.equal(first.classifier.weight, source.build(2, 0).classifier.weight)
    encoded = encode(TASKS["rte"], PAIRS.train, source.tokenizer, 16)
    assert encoded.types is not None and set(encoded.types.tolist()) == {0, 1}


def test_the_fingerprint_of_a_folder_follows_its_weights(folder: Path):
    before = open_model(str(folder), PAIRS, None).fingerprint
    assert open_model(str(folder), PAIRS, None).fingerprint == before
    model = transformers.BertForSequenceClassification.from_pretrained(folder)
    model.bert.encoder.layer[0].output.dense.bias.data.add_(1e-3)
    model.save_pretrained(folder)
    assert open_model(str(folder), PAIRS, None).fingerprint != before


def test_a_model_without_dropout_of_attention(tmp_path: Path):
    config = transformers.DistilBertConfig(
        vocab_size=7, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=40
    )
    transformers.DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film"]
    transformers.BertTokenizer(vocab={word: n for n, word in enumerate(words)}).save_pretrained(tmp_path)
    assert open_model(str(tmp_path), SINGLE, 0.3).build(2, 0).config.attention_dropout == 0.3
    config = transformers.FNetConfig(vocab_size=7, hidden_size=16, num_hidden_layers=1, intermediate_size=32)
    transformers.FNetForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(BenchmarkError, match=r"'attention_dropout' must be left out for fnet \(got 0\.3\)"):
        open_model(str(tmp_path), SINGLE, 0.3)


def test_without_transformers(monkeypatch):
    def missing(name: str):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(errors.importlib, "import_module", missing)
    with pytest.raises(
        BenchmarkError, match=r"'transformers' could not be .*pip install -e '\.\[benchmarks,transformers\]'"
    ):
        open_model("tiny", SINGLE, None)
