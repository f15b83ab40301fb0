"""Settings from files and command lines: every value that is none is refused by its name, and none of them runs."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmm_gnn import GradientProbe, MemoryReport, Plan, RMMConfig, convert_to_rmm, memory_report, plan, rmm_linear
from rmm_gnn.codecs import get_codec
from rmm_gnn.config import _PLAIN_FIELDS
from rmm_gnn.hf.config import read_config
from rmm_gnn.hf.targets import select
from tests.examples import examples

DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000
DIGITS = "9" * 5000
MODEL_ARGUMENTS = {"rate": 0.5, "loss_fn": lambda out: out.square().mean()}


def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"rate": NaN}', r"'rate' must lie in \(0, 1\] \(got nan\)"),
        ('{"rate": 1e999}', r"'rate' must lie in \(0, 1\] \(got inf\)"),
        ('{"rate": -1e-400}', r"'rate' must lie in \(0, 1\] \(got -0.0\)"),
        ('{"norm_rate": -Infinity}', r"'norm_rate' must lie in \(0, 1\] \(got -inf\)"),
        (f'{{"size": {DIGITS}}}', "'config' must be valid JSON .got the text: Exceeds the limit"),
        (DEEP, "'config' must be valid JSON .got the text: maximum recursion depth"),
        ('{"size": -9223372036854775809}', r"'size' must be at least 1 \(got -9223372036854775809\)"),
        ('{"__class__": "os.system"}', "'config' must have known settings"),
        ('{"_spec": "x"}', "'config' must have known settings"),
        ('{"\\ud800": 1}', "'config' must have known settings"),
        ("{\"codec\": \"__import__('os').mkdir('x')\"}", "'codec' must be a known name"),
        ('{"codec": "int4:group_size=4,group_size=5"}', "'codec' must have group_size once"),
        ('{"backend": "native; rm -rf /"}', "'backend' must be a known name"),
        ('{"sketch": {"name": "sors", "transform": "__import__"}}', "'transform' must be a known name"),
        ('{"sketch": {"name": "gaussian", "__init__": 1}}', "'sketch' must have known settings"),
        ('{"sketch": {"name": "importance_sampling", "top_share": NaN}}', r"'top_share' must lie in \[0, 1\)"),
        ('{".*": {"rate": NaN}}', r"'rate' must lie in \(0, 1\] \(got nan\)"),
        ('{"rate": 0.1}}', "'config' must be valid JSON"),
        ("{", "'config' must be valid JSON"),
    ],
    ids=range(19),
)
def test_values_that_are_none(text, match):
    with pytest.raises(ValueError, match=match):
        read_config(text)


@pytest.mark.parametrize("value", [True, "0.1", [0.1], {"a": 1}, 1e3], ids=repr)
def test_values_of_another_type(value):
    for name in ("rate", "size", "workspace_bytes", "center", "codec", "sketch", "backend", "anchor"):
        if (name, value) in (("rate", 1e3), ("center", True), ("anchor", True)) or (name == "codec" and value == "0.1"):
            continue
        if isinstance(value, str) and name in ("sketch", "backend"):
            continue
        with pytest.raises(TypeError, match="must be"):
            read_config({name: value})


@pytest.mark.parametrize("group_size", [DIGITS, "\u0663", "\u00b2", "1_0", "0x10", "1e3", "-" + DIGITS, "+4"])
def test_group_sizes_that_are_no_counts(group_size):
    with pytest.raises(TypeError, match="'group_size' must be a whole number"):
        get_codec(f"int4:group_size={group_size}")


@pytest.mark.parametrize("path", ["", "   ", "5", "null", "[1]", "\0", "a" * 5000, "[" * 100_000, "../nowhere", "a\nb"])
def test_paths_of_no_file(path):
    with pytest.raises(FileNotFoundError, match="'config' must be JSON or the path of a JSON file") as caught:
        read_config(path)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["a b.json", "ü雪.json", "$(touch x).json", "-x.json", "a\nb.json"])
def test_paths_of_odd_characters(tmp_path, name):
    (tmp_path / name).write_text('{"rate": 0.5}')
    assert read_config(tmp_path / name) == RMMConfig(rate=0.5)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x80", b"", b"\x00" * 100])
def test_files_that_hold_no_text(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match="'config' must be valid JSON"):
        read_config(tmp_path / "config.json")


def test_huge_counts_are_counts():
    x, weight = torch.randn(9, 4), torch.randn(3, 4, requires_grad=True)
    config = read_config(f'{{"size": {10**30}, "workspace_bytes": {10**400}, "codec": "int8:group_size={10**18}"}}')
    rmm_linear(x, weight, config=config).sum().backward()
    torch.testing.assert_close(weight.grad, x.sum(0).expand(3, 4), rtol=0.0, atol=0.2)
    assert config.sketch_size(9) == 9


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (None, TypeError, r"'settings' must be what to_dict gave \(got NoneType\)"),
        ([], TypeError, r"'settings' must be what to_dict gave \(got list\)"),
        ({}, ValueError, r"'settings' must be what to_dict gave \(got one without \['act_codec', "),
        ({"rates": 1, "rate": 0.1}, ValueError, r"'settings' must be what to_dict gave"),
        ({"evil": 1}, ValueError, r"got one with \[\"'evil'\"\]"),
        ({5: 1}, ValueError, r"got one with \['5'\]"),
        ({"sketch": 5}, TypeError, r"'sketch' must be a dictionary of settings \(got int\)"),
        ({"sketch": {}}, TypeError, r"'sketch' must be a name \(got NoneType\)"),
        ({"sketch": {"name": ["x"]}}, TypeError, r"'sketch' must be a name \(got list\)"),
        ({"sketch": {"name": "gaussian", "x": 1}}, ValueError, r"'sketch' must have known settings \(got 'x'"),
    ],
)
def test_records_that_are_none(change, error, match):
    settings = change
    if isinstance(change, dict) and change and "rates" not in change:
        settings = {**RMMConfig().to_dict(), **change}
    with pytest.raises(error, match=match):
        RMMConfig.from_dict(settings)


@pytest.mark.parametrize(
    "text", ["", "nul", "5", "[]", "{}", '{"rows": 1}', '{"rows": [1]}', DEEP, f'{{"a": {DIGITS}}}']
)
def test_plans_and_reports_that_are_none(text):
    with pytest.raises(ValueError, match="'text' must be a plan written by to_json"):
        Plan.from_json(text)
    with pytest.raises(ValueError, match="'text' must be what to_json returned"):
        MemoryReport.from_json(text)


def test_a_plan_with_a_hostile_config_in_it():
    network = model()
    text = plan(network, torch.randn(30, 4), **MODEL_ARGUMENTS).to_json()
    assert Plan.from_json(text).to_json() == text
    for value in (float("nan"), float("inf"), "0.1", 10**400, None):
        values = json.loads(text)
        values["functions"]["rate"] = value
        values["functions"]["size"] = None if value is not None else -1
        with pytest.raises(ValueError, match="'text' must be a plan written by to_json"):
            Plan.from_json(json.dumps(values))
    report = memory_report(network, torch.randn(30, 4))
    assert MemoryReport.from_json(report.to_json()) == report


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@examples(150)
@given(st.dictionaries(st.sampled_from(["sketch", *_PLAIN_FIELDS]) | st.text(max_size=5), JSON, max_size=4))
def test_any_json_is_a_config_or_an_error_that_names_what_is_wrong(settings):
    for source in (settings, json.dumps(settings)):
        try:
            found = read_config(source)
        except (TypeError, ValueError) as error:
            assert str(error).startswith("'") and " must " in str(error)
        else:
            for config in found.values() if isinstance(found, dict) else [found]:
                assert config is None or RMMConfig.from_dict(config.to_dict()) == config
    for text in (json.dumps(settings), json.dumps([settings])):
        with pytest.raises(ValueError, match="must be a plan written"):
            Plan.from_json(text)


PATTERNS = ["(", "[", "*", "a{99999999999}", "(?P<a", "\\", "(" * 5000 + ")" * 5000, "(?<=a*)b"]


@pytest.mark.parametrize("pattern", PATTERNS, ids=range(len(PATTERNS)))
def test_patterns_that_are_none(pattern):
    with pytest.raises(ValueError, match="'config' must have regular expressions as keys"):
        convert_to_rmm(model(), {pattern: RMMConfig()})
    with pytest.raises(ValueError, match="'layers' must be a valid regular expression"):
        GradientProbe(model(), layers=pattern)
    with pytest.raises(ValueError, match="'target_modules' must be a valid regular expression"):
        select(dict(model().named_modules()), ["0", "2"], pattern, None)


@pytest.mark.parametrize("pattern", [5, None, b".*", (".*",)], ids=repr)
def test_patterns_of_another_type(pattern):
    with pytest.raises(TypeError, match="'config' must have regular expressions as keys"):
        convert_to_rmm(model(), {pattern: RMMConfig()})


def test_a_config_cannot_be_changed_into_a_wrong_one():
    config = RMMConfig()
    with pytest.raises(AttributeError):
        config.rate = 5.0
    assert asdict(config)["rate"] == 0.1
