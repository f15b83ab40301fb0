"""Every law of a codec, over every codec: what is stored, how large it is, and what it depends on."""

import copy
import dataclasses
import math
import pickle

import pytest
import torch

from rmm_gnn.codecs import CODECS, CastCodec, StochasticCodec, get_codec, stochastic
from tests.codecs.cases import CASES, STOCHASTIC

CODEC = pytest.mark.parametrize("codec", CASES.values(), ids=CASES.keys())
ROUNDED_AT_RANDOM = pytest.mark.parametrize("codec", STOCHASTIC.values(), ids=STOCHASTIC.keys())
SHAPES = pytest.mark.parametrize("shape", [(0, 5), (1, 1), (63, 1), (100, 3), (5, 256), (7, 129), (3, 64), (2, 7)])
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INF, NAN = math.inf, math.nan


def decode(codec, payload, shape, dtype=torch.float64):
    return codec.decode(payload, 0, shape[0], shape[1], dtype)


def back(codec, matrix, seed=5, dtype=torch.float64):
    """The matrix as read back."""
    return decode(codec, codec.encode_matrix(matrix, torch.tensor(seed)), matrix.shape, dtype)


def same_payload(first, second):
    return len(first) == len(second) and all(
        a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))
        for a, b in zip(first, second, strict=True)
    )


def documented_bytes(codec, num_rows, num_columns, dtype):
    """The formulas of the docstrings."""
    if isinstance(codec, CastCodec):
        return num_rows * num_columns * {"fp32": dtype.itemsize, "bf16": 2, "fp16": 2}[codec.name]
    groups = 1 if codec.group_size is None else math.ceil(num_columns / codec.group_size)
    scale_bytes = {"bf16": 2, "fp32": 4}[codec.scale]
    return num_rows * (math.ceil(num_columns * codec.bits / 8) + 2 * groups * scale_bytes)


def largest_error(codec, matrix):
    """A bound on |read back - value| for every entry: one step, or half a unit in the last place."""
    matrix = matrix.double()
    if codec.name == "fp32":
        return torch.zeros_like(matrix)
    if isinstance(codec, CastCodec):
        return matrix.abs() * {"bf16": 2**-8, "fp16": 2**-11}[codec.name] + 2**-24
    size = codec.group_size or max(1, matrix.shape[1])
    widest = torch.empty_like(matrix)
    for start in range(0, matrix.shape[1], size):
        part = matrix[:, start : start + size]
        low, high = part.amin(1, keepdim=True), part.amax(1, keepdim=True)
        # The offset may lie one unit in the last place of its type below the minimum, the step one above its value.
        unit = 2**-7 if codec.scale == "bf16" else 2**-22
        widest[:, start : start + size] = (high - low + unit * low.abs()) / codec.levels * (1 + unit)
    return widest


def test_every_codec_has_a_case():
    assert {codec.name for codec in CASES.values()} == set(CODECS)


def test_the_cases_exercise_the_settings():
    assert {codec.group_size for codec in STOCHASTIC.values()} >= {None, 1, 7, 64, 1000}
    assert {(codec.bits, codec.scale) for codec in STOCHASTIC.values()} >= {(8, "fp32"), (4, "fp32"), (2, "fp32")}


@CODEC
@SHAPES
def test_what_is_read_back_is_one_step_away_at_most(codec, shape):
    for dtype in DTYPES:
        matrix = (3 * torch.randn(shape) + 1).to(dtype)
        result = back(codec, matrix)
        assert result.shape == shape and result.dtype == torch.float64
        # Low-precision and float32 values are divided by the step in float32.
        assert ((result - matrix.double()).abs() <= largest_error(codec, matrix) + 1e-5).all()


@CODEC
@SHAPES
def test_bytes_are_those_allocated_and_those_documented(codec, shape):
    for dtype in DTYPES:
        payload = codec.encode_matrix(torch.randn(shape).to(dtype), torch.tensor(1))
        allocated = sum(tensor.untyped_storage().nbytes() for tensor in payload)
        assert allocated == codec.num_bytes(*shape, dtype) == documented_bytes(codec, *shape, dtype)
        assert len(payload) == codec.num_tensors


@pytest.mark.parametrize(
    ("spec", "num_bytes"),
    [
        ("fp32", 10 * 100 * 4),
        ("bf16", 10 * 100 * 2),
        ("fp16", 10 * 100 * 2),
        ("int8", 10 * (100 + 4)),
        ("int4", 10 * (50 + 4)),
        ("int2", 10 * (25 + 4)),
        ("int1", 10 * (13 + 4)),
        ("int1:scale=fp32", 10 * (13 + 8)),
        ("int4:group_size=64", 10 * (50 + 2 * 4)),
        ("int4:group_size=64,scale=fp32", 10 * (50 + 2 * 8)),
        ("int2:group_size=1", 10 * (25 + 100 * 4)),
        ("int2:group_size=100", 10 * (25 + 4)),
        ("int2:group_size=1000", 10 * (25 + 4)),
    ],
)
def test_bytes_in_plain_numbers(spec, num_bytes):
    assert get_codec(spec).num_bytes(10, 100, torch.float32) == num_bytes


@CODEC
@SHAPES
def test_traced_storage_is_the_real_one(codec, shape):
    for dtype in DTYPES:
        real = codec.encode_matrix(torch.zeros(shape, dtype=dtype), torch.tensor(1))
        traced = codec.empty(*shape, dtype, torch.device("meta"))
        assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in traced]


@CODEC
@SHAPES
@pytest.mark.parametrize("height", [1, 13])
def test_pieces_make_the_whole(codec, shape, height):
    num_rows, num_columns = shape
    for dtype in DTYPES:
        matrix, seed = torch.randn(shape).to(dtype), torch.tensor(77)
        whole = codec.encode_matrix(matrix, seed)
        pieces = codec.empty(*shape, dtype, matrix.device)
        rows = [torch.empty(0, num_columns, dtype=dtype)]
        for start in reversed(range(0, num_rows, height)):
            codec.encode(matrix[start : start + height], pieces, start, seed)
        for start in range(0, num_rows, height):
            rows.append(codec.decode(whole, start, min(start + height, num_rows), num_columns, dtype))
        assert same_payload(pieces, whole)
        assert torch.equal(torch.cat(rows), decode(codec, whole, shape, dtype))


@CODEC
def test_a_piece_writes_its_own_rows_only(codec):
    matrix, seed = torch.randn(9, 13), torch.tensor(3)
    payload = codec.encode_matrix(matrix, seed)
    before = [tensor.clone() for tensor in payload]
    codec.encode(torch.randn(2, 13), payload, 4, seed)
    for old, new in zip(before, payload, strict=True):
        assert torch.equal(old[:4], new[:4]) and torch.equal(old[6:], new[6:])
        assert not torch.equal(old[4:6], new[4:6])


@CODEC
def test_no_rows_are_read_as_no_rows(codec):
    payload = codec.encode_matrix(torch.randn(4, 5), torch.tensor(1))
    assert codec.decode(payload, 2, 2, 5, torch.float32).shape == (0, 5)


@CODEC
def test_no_columns(codec):
    assert back(codec, torch.empty(4, 0)).shape == (4, 0)
    assert codec.variance(torch.empty(4, 0)).shape == (4, 0)


@CODEC
@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(codec, dtype):
    base, seed = torch.randn(160, 34).to(dtype), torch.tensor(9)
    expanded = (base[0].expand(20, 34), base[:20, :1].expand(20, 13), base[0, 0].expand(20, 13))
    for matrix in (base.T, base[::2, ::2], base[3:50, 5:18], *expanded):
        plain = matrix.clone(memory_format=torch.contiguous_format)
        assert same_payload(codec.encode_matrix(matrix, seed), codec.encode_matrix(plain, seed))
        torch.testing.assert_close(codec.variance(matrix), codec.variance(plain))


@CODEC
@SHAPES
def test_arguments_are_only_read(codec, shape):
    for dtype in DTYPES:
        matrix, seed = torch.randn(shape).to(dtype), torch.tensor(12)
        before = matrix.clone()
        payload = codec.encode_matrix(matrix, seed)
        assert torch.equal(matrix, before) and seed == 12
        codec.variance(matrix)
        assert torch.equal(matrix, before)
        kept = [tensor.clone() for tensor in payload]
        decode(codec, payload, shape, dtype)
        assert same_payload(payload, kept)


@CODEC
def test_storage_does_not_follow_the_argument(codec):
    matrix = torch.randn(6, 5)
    payload = codec.encode_matrix(matrix, torch.tensor(1))
    before = decode(codec, payload, (6, 5)).clone()
    matrix.zero_()
    assert torch.equal(decode(codec, payload, (6, 5)), before)


@CODEC
def test_the_global_generator_is_left_alone(codec):
    matrix, state = torch.randn(6, 5), torch.get_rng_state()
    back(codec, matrix)
    assert torch.equal(torch.get_rng_state(), state)


@CODEC
def test_same_seed_same_storage(codec):
    matrix = torch.randn(40, 9)
    first, second = (codec.encode_matrix(matrix, torch.tensor(4)) for _ in range(2))
    assert same_payload(first, second)


@ROUNDED_AT_RANDOM
def test_other_seed_other_codes_but_the_same_scales(codec):
    matrix = torch.randn(40, 9)
    codes, scales = codec.encode_matrix(matrix, torch.tensor(4))
    for seed in (5, -4, 4 + 2**32, 4 + 2**62):
        other_codes, other_scales = codec.encode_matrix(matrix, torch.tensor(seed))
        assert not torch.equal(codes, other_codes) and torch.equal(scales, other_scales)


@CODEC
@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**62 + 17, -(2**63)])
def test_any_64_bit_seed_serves(codec, seed):
    matrix = torch.randn(30, 9)
    assert ((back(codec, matrix, seed) - matrix.double()).abs() <= largest_error(codec, matrix) + 1e-5).all()


@CODEC
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_coded_as_the_same_values_in_float32(codec, dtype):
    matrix = torch.randn(30, 9).to(dtype)
    assert torch.equal(back(codec, matrix), back(codec, matrix.float()))


@CODEC
def test_types_of_what_is_read_back(codec):
    matrix = torch.randn(30, 9)
    payload = codec.encode_matrix(matrix, torch.tensor(2))
    single = decode(codec, payload, (30, 9), torch.float32)
    torch.testing.assert_close(single.double(), decode(codec, payload, (30, 9)), rtol=1e-6, atol=1e-6)
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(decode(codec, payload, (30, 9), dtype), single.to(dtype))


@CODEC
@pytest.mark.parametrize("values", [(INF,), (-INF,), (NAN,), (INF, -INF), (INF, NAN), (-INF, NAN)])
@pytest.mark.parametrize(
    ("columns", "dtype"), [(2, torch.float32), (13, torch.float16), (13, torch.float64), (130, torch.bfloat16)]
)
def test_inf_and_nan_are_never_hidden(codec, values, columns, dtype):
    matrix = torch.randn(6, columns).to(dtype)
    clean = back(codec, matrix)
    for row, column in ((1, 0), (4, columns - len(values))):
        matrix[row, column : column + len(values)] = torch.tensor(values)
    result = back(codec, matrix)
    assert not result[~matrix.isfinite()].isfinite().any()
    assert not codec.variance(matrix)[~matrix.isfinite()].isfinite().any() or isinstance(codec, CastCodec)
    # Groups without them, and the bits beside them, are as they were.
    untouched = matrix.isfinite()
    if isinstance(codec, StochasticCodec):
        size = codec.group_size or columns
        for start in range(0, columns, size):
            untouched[:, start : start + size] &= matrix[:, start : start + size].isfinite().all(1, keepdim=True)
        assert result[~untouched].isnan().all()
    assert torch.equal(result[untouched], clean[untouched])
    assert result[[0, 2, 3, 5]].isfinite().all()


@CODEC
@pytest.mark.parametrize("value", [INF, -INF, NAN])
def test_rows_of_nothing_but_inf_or_nan(codec, value):
    for columns in (1, 5, 64):
        assert not back(codec, torch.full((3, columns), value)).isfinite().any()


@ROUNDED_AT_RANDOM
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_range_that_overflows_is_read_back_as_nan(codec, dtype):
    largest = torch.finfo(dtype).max
    result = back(codec, torch.tensor([[-largest, largest, 0.0], [1.0, 2.0, 3.0]], dtype=dtype))
    if codec.group_size != 1:
        assert result[0].isnan().all()
    assert result[1].isfinite().all()


@ROUNDED_AT_RANDOM
@pytest.mark.parametrize("value", [0.0, 2.5, -2.5, 1.0, -1024.0, 2.0**-120, -(2.0**120)])
def test_constant_rows_are_exact_where_bfloat16_holds_the_value(codec, value):
    for columns in (1, 7, 13, 130):
        matrix = torch.full((5, columns), value)
        assert torch.equal(back(codec, matrix), matrix.double())
        assert not codec.variance(matrix).any()


@ROUNDED_AT_RANDOM
def test_constant_rows_with_float32_scales_are_exact(codec):
    matrix = torch.tensor([0.1, -0.1, 1e-38, 1e38, 3.0e-39]).unsqueeze(1).expand(5, 13)
    exact = torch.equal(back(codec, matrix), matrix.double())
    assert exact == (codec.scale == "fp32")


@ROUNDED_AT_RANDOM
def test_offset_lies_below_and_the_range_above_every_value(codec):
    """No value is clamped, for rows of any magnitude: offset <= min and max <= offset + step (2^bits - 1)."""
    magnitude = 10.0 ** torch.arange(-35.0, 36.0).unsqueeze(1)
    for shift in (0.0, 3.0, -3.0, 1000.0, -1000.0):
        matrix = magnitude * (torch.randn(71, 13) + shift)
        _, scales = codec.encode_matrix(matrix, torch.tensor(0))
        size = codec.group_size or 13
        groups = scales.shape[1] // 2
        offsets, steps = (part.double().repeat_interleave(size, 1)[:, :13] for part in scales.split(groups, 1))
        assert (offsets <= matrix).all()
        # The division that gives the step is in float32.
        top = offsets + steps * codec.levels
        assert (matrix - top <= 2**-22 * (top - offsets)).all()


@ROUNDED_AT_RANDOM
def test_values_lie_on_the_grid_next_to_them(codec):
    """Read back is the grid point below or above, never another one: floor((x - o)/s + u) with 0 <= u < 1."""
    matrix = torch.randn(50, 13, dtype=torch.float64)
    payload = codec.encode_matrix(matrix, torch.tensor(8))
    size, groups = codec.group_size or 13, payload[1].shape[1] // 2
    offsets, steps = (part.double().repeat_interleave(size, 1)[:, :13] for part in payload[1].split(groups, 1))
    steps_above = (matrix - offsets) / steps.clamp(min=1e-300)
    codes = (decode(codec, payload, (50, 13)) - offsets) / steps.clamp(min=1e-300)
    below = (steps_above + 1e-6).floor() - 1e-6
    above = (steps_above - 1e-6).ceil() + 1e-6
    assert ((below <= codes) & (codes <= above)).all()


@ROUNDED_AT_RANDOM
@pytest.mark.parametrize("shape", [(100, 3), (7, 129), (33, 64), (5, 1)])
@pytest.mark.parametrize("tile", [1, 150])
def test_the_size_of_a_tile_does_not_matter(codec, shape, tile, monkeypatch):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        matrix, seed = torch.randn(shape).to(dtype), torch.tensor(6)
        whole = codec.encode_matrix(matrix, seed)
        with monkeypatch.context() as patch:
            patch.setattr(stochastic, "_TILE", tile)
            assert same_payload(codec.encode_matrix(matrix, seed), whole)
            pieces = codec.empty(*shape, dtype, matrix.device)
            codec.encode(matrix[:3], pieces, 0, seed)
            codec.encode(matrix[3:], pieces, 3, seed)
            assert same_payload(pieces, whole)


@CODEC
def test_codec_survives_spec_pickle_copy_and_hash(codec):
    again = get_codec(codec.spec)
    assert again == codec and hash(again) == hash(codec) and again.spec == codec.spec
    assert pickle.loads(pickle.dumps(codec)) == copy.deepcopy(codec) == codec
    assert get_codec(codec) is codec


def test_specs():
    assert get_codec("int4") == StochasticCodec(4) == StochasticCodec(bits=4, group_size=None, scale="bf16")
    assert get_codec("int4:scale=bf16").spec == "int4"
    assert get_codec("int4:scale=fp32,group_size=64").spec == "int4:group_size=64,scale=fp32"
    assert get_codec("int1:group_size=7").spec == "int1:group_size=7"
    assert [get_codec(name).spec for name in CODECS] == list(CODECS)
    assert dataclasses.replace(StochasticCodec(2), bits=8, group_size=3).spec == "int8:group_size=3"


def test_settings_make_codecs_differ():
    assert len({codec.spec for codec in CASES.values()}) == len(set(CASES.values())) == len(CASES)


@pytest.mark.parametrize(
    ("codec", "error", "match"),
    [
        ("int3", ValueError, r"'norm_codec' must be a known name \(got 'int3'\).*bf16, fp16, fp32, int1, int2, int4"),
        ("", ValueError, r"'norm_codec' must be a known name \(got ''\)"),
        ("INT8", ValueError, r"'norm_codec' must be a known name \(got 'INT8'\)"),
        (8, TypeError, r"'norm_codec' must be a name \(got int\)"),
        (None, TypeError, r"'norm_codec' must be a name \(got NoneType\)"),
        (["int4"], TypeError, r"'norm_codec' must be a name \(got list\)"),
        ("int4:bits=2", ValueError, r"'norm_codec' must have settings that int4 knows \(got 'bits=2'\).*COLUMNS"),
        ("int4:group_size", ValueError, r"'norm_codec' must have settings that int4 knows \(got 'group_size'\)"),
        ("int4:group_size=", ValueError, r"'norm_codec' must have settings that int4 knows \(got 'group_size='\)"),
        ("int4:64", ValueError, r"'norm_codec' must have settings that int4 knows \(got '64'\)"),
        ("bf16:scale=fp32", ValueError, r"'norm_codec' must have settings that bf16 knows .*the others have none"),
        ("int4:group_size=0", ValueError, r"'group_size' must be at least 1 \(got 0\)"),
        ("int4:group_size=-3", (ValueError, TypeError), r"'group_size' must be .* \(got '?-3'?\)"),
        ("int4:group_size=six", TypeError, r"'group_size' must be a whole number \(got 'six'\)"),
        ("int4:group_size=2.5", TypeError, r"'group_size' must be a whole number \(got '2.5'\)"),
        ("int4:scale=fp16", ValueError, r"'scale' must be a known name \(got 'fp16'\).*bf16, fp32"),
    ],
)
def test_errors_name_the_argument_as_it_was_given(codec, error, match):
    for _ in range(2):  # an error is not remembered as a result
        with pytest.raises(error, match=match):
            get_codec(codec, "norm_codec")


def test_errors_name_codec_by_default_and_never_another_argument():
    for argument in ("codec", "x0_codec", "codec"):
        with pytest.raises(ValueError, match=f"'{argument}' must be a known name"):
            get_codec("int3", *([] if argument == "codec" else [argument]))


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"bits": 3}, ValueError, r"'bits' must be 1, 2, 4 or 8 \(got 3\). Codes have to fill bytes"),
        ({"bits": 16}, ValueError, r"'bits' must be 1, 2, 4 or 8 \(got 16\)"),
        ({"bits": 0}, ValueError, r"'bits' must be at least 1 \(got 0\)"),
        ({"bits": True}, TypeError, r"'bits' must be a whole number \(got True\)"),
        ({"bits": 4.0}, TypeError, r"'bits' must be a whole number \(got 4.0\)"),
        ({"bits": 4, "group_size": 0}, ValueError, r"'group_size' must be at least 1 \(got 0\)"),
        ({"bits": 4, "group_size": -1}, ValueError, r"'group_size' must be at least 1 \(got -1\)"),
        ({"bits": 4, "group_size": 2.5}, TypeError, r"'group_size' must be a whole number \(got 2.5\)"),
        ({"bits": 4, "group_size": True}, TypeError, r"'group_size' must be a whole number \(got True\)"),
        ({"bits": 4, "scale": "fp16"}, ValueError, r"'scale' must be a known name \(got 'fp16'\).*bf16, fp32"),
        ({"bits": 4, "scale": None}, TypeError, r"'scale' must be a name \(got NoneType\)"),
    ],
)
def test_settings_are_checked(settings, error, match):
    with pytest.raises(error, match=match):
        StochasticCodec(**settings)
