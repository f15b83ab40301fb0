"""The configured codecs that the conformance suite runs every law on.  A codec without a case fails a test."""

from rmm_gnn.codecs import StochasticCodec, get_codec

CASES = {
    "fp32": get_codec("fp32"),
    "bf16": get_codec("bf16"),
    "fp16": get_codec("fp16"),
    "int8": StochasticCodec(8),
    "int8-group1": StochasticCodec(8, group_size=1),
    "int8-fp32": StochasticCodec(8, scale="fp32"),
    "int4": StochasticCodec(4),
    "int4-group7": StochasticCodec(4, group_size=7),
    "int4-group64-fp32": StochasticCodec(4, group_size=64, scale="fp32"),
    "int2": StochasticCodec(2),
    "int2-group7-fp32": StochasticCodec(2, group_size=7, scale="fp32"),
    "int2-group1000": StochasticCodec(2, group_size=1000),
    "int1": StochasticCodec(1),
    "int1-group7": StochasticCodec(1, group_size=7),
    "int1-group64": StochasticCodec(1, group_size=64),
}
CASTS = {name: codec for name, codec in CASES.items() if not isinstance(codec, StochasticCodec)}
STOCHASTIC = {name: codec for name, codec in CASES.items() if isinstance(codec, StochasticCodec)}
