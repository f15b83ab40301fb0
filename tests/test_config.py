"""RMMConfig: defaults, the clamp, the byte formula, and every error."""

import copy
import dataclasses
import importlib.util
import json
import pickle
from typing import ClassVar

import numpy as np
import pytest
import torch

from rmm_gnn import RMMConfig, SORSSketch
from rmm_gnn.codecs import CODECS, CastCodec, StochasticCodec, get_codec
from rmm_gnn.config import resolve_config
from rmm_gnn.sketches import (
    FAMILIES,
    BlockRademacherSketch,
    CountSketch,
    ImportanceSamplingSketch,
    NormSamplingSketch,
    RowSamplingSketch,
    from_spec,
    get_sketch,
)


def test_defaults():
    config = RMMConfig()
    assert (config.rate, config.size, config.center, config.codec) == (0.1, None, True, "fp32")
    assert config.family == get_sketch("count_sketch")
    assert config.workspace_bytes == 64 * 2**20 and config.backend == "auto"
    assert (config.norm_codec, config.act_codec, config.x0_codec) == ("int2", "int4", "fp32")
    assert config.norm_rate == 1.0
    assert config.anchor is False


@pytest.mark.parametrize(
    ("settings", "num_rows", "expected"),
    [
        ({"rate": 0.1}, 1000, 100),
        ({"rate": 0.1}, 1, 1),
        ({"rate": 0.1}, 4, 1),
        ({"rate": 1.0}, 7, 7),
        ({"size": 50}, 1000, 50),
        ({"size": 50}, 20, 20),
        ({"rate": 0.1, "min_size": 64}, 100, 64),
        ({"rate": 0.1, "min_size": 64}, 30, 30),
        ({"rate": 0.5, "max_size": 64}, 1000, 64),
        ({"size": 500, "max_size": 64}, 1000, 64),
    ],
)
def test_sketch_size_is_clamped_and_never_zero(settings, num_rows, expected):
    assert RMMConfig(**settings).sketch_size(num_rows) == expected


def test_names_and_configured_families_are_the_same_thing():
    assert RMMConfig(sketch="sors") == RMMConfig(sketch=SORSSketch(transform="hadamard"))
    assert RMMConfig(sketch="sors") != RMMConfig(sketch=SORSSketch(transform="dct"))


@pytest.mark.parametrize("sketch", ["count_sketch", SORSSketch("dct"), BlockRademacherSketch(64)])
def test_spec_round_trip_copy_and_pickle(sketch):
    config = RMMConfig(size=12, min_size=3, max_size=40, sketch=sketch, center=False, codec="bf16")
    assert RMMConfig.from_spec(config.spec) == config
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert config.to_dict()["sketch"]["name"] == config.family.name


def test_records_carry_the_share_of_rows_of_normalisation_and_the_anchor_and_old_ones_lack_them():
    config = RMMConfig(norm_rate=0.25, anchor=True)
    record = json.loads(json.dumps(config.to_dict()))
    assert RMMConfig.from_dict(record) == config
    assert config.extra_repr() == "rate=0.1, norm_rate=0.25, anchor=True"
    del record["norm_rate"], record["anchor"]
    assert RMMConfig.from_dict(record) == RMMConfig()
    del record["codec"]
    with pytest.raises(ValueError, match=r"'settings' must be what to_dict gave \(got one without \['codec'\]\)"):
        RMMConfig.from_dict(record)


def test_saved_bytes_formula():
    assert RMMConfig(rate=0.1, center=False).saved_bytes(1000, 64) == 100 * 64 * 4 + 8
    assert RMMConfig(rate=0.1).saved_bytes(1000, 64) == 100 * 64 * 4 + 64 * 4 + 8
    assert RMMConfig(rate=0.1, codec="bf16").saved_bytes(1000, 64) == 100 * 64 * 2 + 64 * 4 + 8
    assert RMMConfig(rate=0.1).saved_bytes(1000, 64, torch.bfloat16) == 100 * 64 * 2 + 64 * 4 + 8
    assert RMMConfig(rate=0.1, sketch="norm_sampling").saved_bytes(1000, 64) == 100 * 64 * 4 + 64 * 4 + 100 * 8 + 8


def test_saved_bytes_formula_with_codes():
    """k (ceil(N bits / 8) + 2 scales for every group) + means + seed, with k = 100 and N = 65."""
    for codec, row_bytes in (("int8", 69), ("int4", 37), ("int2", 21), ("int1", 13)):
        assert RMMConfig(codec=codec).saved_bytes(1000, 65) == 100 * row_bytes + 65 * 4 + 8
        assert RMMConfig(codec=codec, center=False).saved_bytes(1000, 65, torch.float64) == 100 * row_bytes + 8
    assert RMMConfig(codec="int4:group_size=64", center=False).saved_bytes(1000, 65) == 100 * (33 + 8) + 8
    assert RMMConfig(codec="int4:scale=fp32", center=False).saved_bytes(1000, 65) == 100 * (33 + 8) + 8


CODEC_FIELDS = ["codec", "norm_codec", "act_codec", "x0_codec"]


@pytest.mark.parametrize("name", CODEC_FIELDS)
@pytest.mark.parametrize(
    ("codec", "spec"),
    [
        (StochasticCodec(1), "int1"),
        (StochasticCodec(4, group_size=64), "int4:group_size=64"),
        (StochasticCodec(8, group_size=7, scale="fp32"), "int8:group_size=7,scale=fp32"),
        ("int8:scale=fp32,group_size=7", "int8:group_size=7,scale=fp32"),
        ("int8:scale=bf16", "int8"),
        (CastCodec("bf16", torch.bfloat16), "bf16"),
    ],
)
def test_codecs_become_their_specs(name, codec, spec):
    config = RMMConfig(**{name: codec})
    assert getattr(config, name) == spec and config == RMMConfig(**{name: spec})
    assert hash(config) == hash(RMMConfig(**{name: spec}))
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    assert config.to_dict()[name] == spec and json.loads(json.dumps(config.to_dict())) == config.to_dict()
    assert config.extra_repr() == f"rate=0.1, {name}={spec!r}"


def test_the_spec_carries_the_codec_with_its_settings():
    config = RMMConfig(codec=StochasticCodec(4, group_size=64, scale="fp32"))
    assert RMMConfig.from_spec(config.spec) == config
    # A linear layer does not read the codecs of other operators, and its operator does not carry them.
    other = dataclasses.replace(
        config, norm_codec="int8", norm_rate=0.5, act_codec="int1", x0_codec="bf16", anchor=True
    )
    assert other != config and other.spec == config.spec


@pytest.mark.parametrize("name", CODEC_FIELDS)
@pytest.mark.parametrize(
    ("codec", "error", "match"),
    [
        ("int3", ValueError, "must be a known name .*bf16, fp16, fp32, int1, int2, int4, int8"),
        (8, TypeError, r"must be a name \(got int\)"),
        (None, TypeError, r"must be a name \(got NoneType\)"),
        ("int4:width=3", ValueError, r"must have settings that int4 knows \(got 'width=3'\).*group_size=COLUMNS"),
        ("fp16:group_size=3", ValueError, "must have settings that fp16 knows .*the others have none"),
    ],
)
def test_errors_of_codecs_name_the_argument(name, codec, error, match):
    with pytest.raises(error, match=f"'{name}' {match}"):
        RMMConfig(**{name: codec})


def test_errors_of_a_codecs_settings_name_the_setting():
    with pytest.raises(ValueError, match=r"'group_size' must be at least 1 \(got 0\)"):
        RMMConfig(norm_codec="int4:group_size=0")
    with pytest.raises(ValueError, match=r"'scale' must be a known name \(got 'fp64'\).*bf16, fp32"):
        RMMConfig(x0_codec="int4:scale=fp64")


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"rate": 0.0}, ValueError, r"'rate' must lie in \(0, 1\] \(got 0.0\)"),
        ({"anchor": 1}, TypeError, "'anchor' must be True or False"),
        (
            {"anchor": True, "sketch": "norm_sampling"},
            ValueError,
            r"'sketch' must be a family that does not depend on the data where it is anchored \(got 'norm_sampling'\)",
        ),
        ({"rate": 1.5}, ValueError, r"'rate' must lie in \(0, 1\]"),
        ({"rate": float("nan")}, ValueError, r"'rate' must lie in \(0, 1\]"),
        ({"rate": "0.1"}, TypeError, "'rate' must be a number"),
        ({"rate": True}, TypeError, "'rate' must be a number"),
        ({"norm_rate": 0.0}, ValueError, r"'norm_rate' must lie in \(0, 1\] \(got 0.0\)"),
        ({"norm_rate": 1.5}, ValueError, r"'norm_rate' must lie in \(0, 1\]"),
        ({"norm_rate": "0.1"}, TypeError, "'norm_rate' must be a number"),
        ({"size": 0}, ValueError, "'size' must be at least 1"),
        ({"size": 2.5}, TypeError, "'size' must be a whole number"),
        ({"rate": 0.1, "size": 4}, ValueError, "'rate' must be left out where 'size' is given"),
        ({"min_size": 0}, ValueError, "'min_size' must be at least 1"),
        ({"min_size": 9, "max_size": 3}, ValueError, "'min_size' must not exceed 'max_size'"),
        ({"sketch": "gauss"}, ValueError, "'sketch' must be a known name .*count_sketch, gaussian"),
        ({"sketch": 3}, TypeError, "'sketch' must be a name"),
        ({"codec": "int3"}, ValueError, "'codec' must be a known name .*bf16, fp16, fp32"),
        ({"center": 1}, TypeError, "'center' must be True or False"),
        ({"workspace_bytes": 0}, ValueError, "'workspace_bytes' must be at least 1"),
        ({"backend": "cuda"}, ValueError, "'backend' must be a known name .*auto, native, scatter, torch, triton"),
    ],
)
def test_errors_name_argument_rule_value_and_way_out(settings, error, match):
    with pytest.raises(error, match=match):
        RMMConfig(**settings)


def test_scatter_backend_is_refused_where_it_cannot_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"install_scatter.sh"):
        RMMConfig(backend="scatter")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="'backend' must be one that computes 'gaussian'"):
        RMMConfig(backend="scatter", sketch="gaussian")


@pytest.mark.parametrize(
    ("family", "settings", "error", "match"),
    [
        (SORSSketch, {"transform": "dst"}, ValueError, "'transform' must be a known name .*dct, dft, hadamard"),
        (BlockRademacherSketch, {"block_rows": 0}, ValueError, "'block_rows' must be at least 1"),
        (RowSamplingSketch, {"replacement": "yes"}, TypeError, "'replacement' must be True or False"),
        (NormSamplingSketch, {"uniform_share": 0}, ValueError, r"'uniform_share' must lie in \(0, 1\]"),
        (ImportanceSamplingSketch, {"top_share": 1}, ValueError, r"'top_share' must lie in \[0, 1\)"),
        (NormSamplingSketch, {"uniform_share": "all"}, TypeError, "'uniform_share' must be a number"),
    ],
)
def test_families_check_their_settings(family, settings, error, match):
    with pytest.raises(error, match=match):
        family(**settings)


def test_keyword_shorthand_of_the_layers():
    assert resolve_config(None, rate=0.2, sketch="gaussian") == RMMConfig(rate=0.2, sketch="gaussian")
    assert resolve_config(None) == RMMConfig()
    with pytest.raises(ValueError, match="'config' must be given alone"):
        resolve_config(RMMConfig(), rate=0.2)
    with pytest.raises(TypeError, match="'config' must be an RMMConfig"):
        resolve_config(0.1)


def test_repr_shows_what_is_not_default():
    assert RMMConfig().extra_repr() == "rate=0.1"
    assert (
        RMMConfig(size=64, sketch="gaussian", center=False).extra_repr() == "size=64, sketch='gaussian', center=False"
    )
    assert "transform='dct'" in RMMConfig(sketch=SORSSketch("dct")).extra_repr()


class UnknownSketch(RowSamplingSketch):
    """A subclass of a registered family, under its name."""


def test_families_that_an_operator_could_not_rebuild_are_refused():
    with pytest.raises(ValueError, match=r"'sketch' must be of a registered family \(got UnknownSketch named 'row_"):
        RMMConfig(sketch=UnknownSketch())


def test_numpy_numbers_become_plain_ones():
    config = RMMConfig(size=np.int64(5), workspace_bytes=np.int64(2**20), sketch=BlockRademacherSketch(np.int64(7)))
    assert json.loads(json.dumps(config.to_dict()))["sketch"] == {"name": "block_rademacher", "block_rows": 7}


def test_replace_says_how():
    assert dataclasses.replace(RMMConfig(), rate=None, size=10).size == 10
    with pytest.raises(ValueError, match=r"in dataclasses.replace, set the other to None"):
        dataclasses.replace(RMMConfig(), size=10)


@pytest.mark.parametrize("codec", [CastCodec("fp64", torch.float64), CastCodec("bf16", torch.float16)])
def test_a_codec_that_its_name_does_not_lead_back_to_is_refused(codec):
    with pytest.raises(ValueError, match="'codec' must be a registered codec"):
        RMMConfig(codec=codec)


def test_a_family_that_is_defined_anew_takes_the_place_of_the_old_one(monkeypatch):
    """As in a notebook, where a cell that defines and registers a family runs again."""

    def define():
        @dataclasses.dataclass(frozen=True)
        class Mine(CountSketch):
            name: ClassVar[str] = "mine"

        monkeypatch.setitem(FAMILIES, "mine", Mine)
        return Mine

    for _ in range(2):
        family = define()
        config = RMMConfig(sketch=family())
        assert type(from_spec(config.family.spec)) is family
        assert type(RMMConfig.from_spec(config.spec).family) is family  # what an operator applies


def test_a_codec_that_is_defined_anew_takes_the_place_of_the_old_one(monkeypatch):
    for _ in range(2):

        class Mine(CastCodec):
            pass

        monkeypatch.setitem(CODECS, "mine", lambda kind=Mine: kind("mine", torch.bfloat16))
        assert type(get_codec("mine")) is Mine
        assert RMMConfig(codec=Mine("mine", torch.bfloat16)).codec == "mine"
