"""Settings as dictionaries, JSON and files, and what is said where they are wrong."""

from __future__ import annotations

import json

import pytest

from rmm_gnn import RMMConfig, RowSamplingSketch, SORSSketch
from rmm_gnn.hf import read_config


def test_configs_and_none():
    config = RMMConfig(rate=0.3)
    assert read_config(config) is config
    assert read_config(None) == RMMConfig() == read_config({})


@pytest.mark.parametrize(
    "config",
    [
        RMMConfig(rate=0.3, codec="int4:group_size=64", min_size=8, max_size=100),
        RMMConfig(size=20, sketch="row_sampling", center=False),
        RMMConfig(rate=0.5, sketch=SORSSketch(transform="dct"), norm_codec="int8"),
    ],
    ids=["codec", "size", "family"],
)
def test_what_a_config_says_of_itself_is_read_back(config, tmp_path):
    settings = config.to_dict()
    file = tmp_path / "rmm.json"
    file.write_text(json.dumps(settings))
    assert read_config(settings) == read_config(json.dumps(settings)) == read_config(file) == config
    assert read_config(str(file)) == config


def test_few_settings_are_enough():
    assert read_config({"rate": 0.2, "sketch": "row_sampling"}) == RMMConfig(rate=0.2, sketch="row_sampling")
    assert read_config(' {"codec": "int8"}') == RMMConfig(codec="int8")
    assert read_config({"sketch": {"name": "row_sampling"}}).family == RowSamplingSketch()
    assert read_config({"sketch": RowSamplingSketch()}).family == RowSamplingSketch()


def test_patterns():
    config = RMMConfig(rate=0.9)
    expected = {".*query": RMMConfig(rate=0.1, min_size=4), "bert.*": config, ".*": None}
    given = {".*query": {"rate": 0.1, "min_size": 4}, "bert.*": config, ".*": None}
    assert read_config(given) == expected and list(read_config(given)) == list(expected)
    plain = {name: value if not isinstance(value, RMMConfig) else value.to_dict() for name, value in given.items()}
    assert read_config(json.dumps(plain)) == expected


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (0.1, TypeError, r"'config' must be an RMMConfig, its settings .* \(got float\). Write RMMConfig\(rate=0.1\)"),
        ({"rte": 0.1}, ValueError, r"known settings \(got 'rte'\). Did you mean 'rate'\? They are: rate, size"),
        ({"rate": 0.1, "qwzx": 1}, ValueError, r"'config' must have known settings \(got 'qwzx'\). They are"),
        ({".*": {"rates": 1}}, ValueError, r"known settings \(got 'rates' for '\.\*'\). Did you mean 'rate'"),
        ({"rate": 0.1, ".*": {"rate": 1}}, ValueError, r"known settings \(got '\.\*'\)"),
        (
            {1: {"rate": 0.1}},
            TypeError,
            r"'config' must have strings as keys \(got 1\). Write settings, as \{'rate': 0.1\}, or",
        ),
        ({".*": {None: 0.1}}, TypeError, r"'config' must have strings as keys \(got None\)"),
        ({"rate": 0.1, ("a",): 1}, TypeError, r"'config' must have strings as keys \(got \('a',\)\)"),
        ({"rate": 2}, ValueError, r"'rate' must lie in \(0, 1\]"),
        ({"rate": "0.1"}, TypeError, "'rate' must be a number"),
        ({"sketch": "countsketch"}, ValueError, "'sketch' must be a known name"),
        ({"sketch": {"name": "counts"}}, ValueError, "'sketch' must be a known name"),
        (
            {"sketch": {"name": "sors", "order": 1}},
            ValueError,
            r"'sketch' must have known settings \(got 'order'",
        ),
        ("{'rate': 0.1}", ValueError, r"'config' must be valid JSON \(got the text: .* double quotes"),
        ("rmm.json", FileNotFoundError, r"'config' must be JSON or the path of a JSON file \(got 'rmm.json'\)"),
    ],
)
def test_errors(given, error, message):
    with pytest.raises(error, match=message):
        read_config(given)


def test_a_file_that_is_no_json(tmp_path):
    (tmp_path / "rmm.yaml").write_text("rate: 0.1\n")
    with pytest.raises(ValueError, match=r"'config' must be valid JSON \(got file '.*rmm.yaml'"):
        read_config(tmp_path / "rmm.yaml")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(TypeError, match=r"\(got list\)"):
        read_config(tmp_path / "list.json")
