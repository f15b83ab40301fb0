"""The arguments on a command line, beside those of the trainer."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

from transformers import HfArgumentParser, TrainingArguments

from rmm_gnn.hf import RMMArguments
from rmm_gnn.nn import LeanLayerNorm, RMMTorchLinear
from tests.hf.models import build


def converted(model) -> set[str]:
    return {name for name, module in model.named_modules() if type(module) is RMMTorchLinear}


def parsed(*arguments: str) -> RMMArguments:
    parser = HfArgumentParser((TrainingArguments, RMMArguments))
    return parser.parse_args_into_dataclasses(["--output_dir", "unused", *arguments])[1]


def test_without_settings_nothing_is_converted():
    model = build("bert")
    assert parsed().apply(model) is model and not converted(model)


def test_settings_and_layers_on_a_command_line():
    arguments = parsed(
        *("--rmm_config", '{"rate": 0.2, "codec": "int8"}'),
        *("--rmm_target_modules", '["query", "value", "classifier"]'),
        *("--rmm_exclude", "output-head"),
        *("--rmm_whole_block", "--rmm_share", "false"),
    )
    model = arguments.apply(build("bert"))
    assert {name.rsplit(".", 1)[1] for name in converted(model)} == {"query", "value"}
    query = model.bert.encoder.layer[0].attention.self.query
    assert (query.config.rate, query.config.codec, query.sketches) == (0.2, "int8", None)
    assert type(model.bert.embeddings.LayerNorm) is LeanLayerNorm


def test_a_regular_expression_and_a_file(tmp_path):
    file = tmp_path / "rmm.json"
    file.write_text(json.dumps({".*query": {"rate": 0.3}, ".*": {"rate": 0.1, "max_size": 64}}))
    model = parsed("--rmm_config", str(file), "--rmm_target_modules", r".*layer\.0\..*").apply(build("bert"))
    assert all(".layer.0." in name for name in converted(model)) and len(converted(model)) == 6
    assert model.bert.encoder.layer[0].attention.self.query.config.rate == 0.3
    assert model.bert.encoder.layer[0].output.dense.config.max_size == 64


def test_a_json_file_of_all_arguments(tmp_path):
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"output_dir": "unused", "rmm_config": '{"rate": 0.5}', "rmm_exclude": ".*dense"}))
    _, arguments = HfArgumentParser((TrainingArguments, RMMArguments)).parse_json_file(str(file))
    assert len(converted(arguments.apply(build("bert")))) == 7


def test_a_broken_list():
    with pytest.raises(ValueError, match=r"'rmm_target_modules' must be a valid JSON list \(got '\[\"query\"'"):
        RMMArguments(rmm_config="{}", rmm_target_modules='["query"').apply(build("bert"))
