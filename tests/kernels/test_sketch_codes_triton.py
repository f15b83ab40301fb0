"""The kernel that sketches and encodes against the kernels that do one and then the other: the same bytes."""

from dataclasses import replace

import pytest
import torch

from rmm_gnn import RMMConfig
from rmm_gnn.codecs import get_codec
from rmm_gnn.compression import compress
from rmm_gnn.kernels import codes_triton, launching_triton, sketch_codes_triton
from rmm_gnn.kernels.count_sketch_triton import sketch
from rmm_gnn.kernels.sketch_codes_triton import sketch_and_encode
from rmm_gnn.sketches import CountSketch, Draw
from tests.kernels.device import DEVICE, far_apart

FAMILY = CountSketch()
SEED = torch.tensor(2**40 + 11, device=DEVICE)


def assert_same_codes(matrix, size, start, stop, name, mean=None, rows=None):
    codec = get_codec(name)
    block, _ = sketch(matrix, SEED, size, start, stop, rows=rows)
    if mean is not None:
        num_rows = matrix.shape[0] if rows is None else rows.shape[0]
        block -= torch.outer(FAMILY.sketch_ones(num_rows, Draw(SEED, size), mean.dtype)[start:stop], mean)
    expected, found = (codec.empty(stop - start, matrix.shape[1], matrix.dtype, DEVICE) for _ in range(2))
    codes_triton.encode(block, *expected, SEED, start, bits=codec.bits, group_size=None)
    sketch_and_encode(matrix, SEED, size, start, stop, *found, bits=codec.bits, rows=rows, mean=mean)
    torch.testing.assert_close(found[1], expected[1], rtol=0.0, atol=0.0, equal_nan=True)
    finite = expected[1].isfinite().all(1)
    assert torch.equal(found[0][finite], expected[0][finite])
    return finite


@pytest.mark.parametrize(
    ("num_rows", "columns", "bits"),
    [(17, 40, 2), (63, 1, 4), (63, 40, 1), (100, 100, 8), (300, 768, 2), (100, 1024, 1), (4097, 3, 2)],
    ids=str,
)
def test_same_bytes(num_rows, columns, bits):
    matrix, size = torch.randn(num_rows, columns, device=DEVICE) + 2, max(1, num_rows // 10)
    assert_same_codes(matrix, size, 0, size, f"int{bits}")
    assert_same_codes(matrix, size, size // 2, size, f"int{bits}:scale=fp32", mean=matrix.mean(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_types_rows_and_strides(dtype):
    matrix = torch.randn(40, 100, device=DEVICE).to(dtype)
    mean = matrix.mean(0).to(torch.float64 if dtype == torch.float64 else torch.float32)
    assert_same_codes(matrix, 10, 0, 10, "int2", mean=mean)
    assert_same_codes(matrix.t(), 97, 3, 50, "int2", mean=None)
    assert_same_codes(matrix, 5, 0, 5, "int4", mean=mean, rows=torch.randperm(40, device=DEVICE)[:23])


def test_more_than_2_to_the_31_elements():
    assert_same_codes(far_apart(5, 40, torch.float16), 2, 0, 2, "int4")


def test_inf_and_nan():
    matrix = torch.randn(100, 30, device=DEVICE)
    matrix[4, 0], matrix[50, 1] = torch.inf, torch.nan
    assert 8 <= assert_same_codes(matrix, 10, 0, 10, "int2").sum() < 10


def test_nothing_to_encode():
    codes, scales = get_codec("int2").empty(2, 0, torch.float32, DEVICE)
    assert sketch_and_encode(torch.ones(10, 0, device=DEVICE), SEED, 2, 0, 2, codes, scales, bits=2) is None


def test_what_is_refused(monkeypatch):
    codes, scales = get_codec("int2").empty(2, 1025, torch.float32, DEVICE)
    with pytest.raises(ValueError, match=r"'matrix' must have at most 1024 columns \(got 1025\)\. Sketch first"):
        sketch_and_encode(torch.ones(10, 1025, device=DEVICE), SEED, 2, 0, 2, codes, scales, bits=2)
    monkeypatch.setattr(launching_triton, "is_interpreted", lambda kernel: False)
    with pytest.raises(ValueError, match=r"'backend' must be one that runs on cpu \(got 'triton'\). Use"):
        sketch_and_encode(torch.ones(10, 4), torch.tensor(0), 2, 0, 2, codes, scales, bits=2)


@pytest.mark.parametrize("codec", ["int8", "int2", "int4:group_size=10", "fp32"])
def test_compress_does_it_in_one_pass_where_nothing_is_centred(codec, monkeypatch):
    """With groups, or centred, the sketch is made first; what is kept is the same to the byte."""
    config, x, passes = RMMConfig(rate=0.2, backend="triton", codec=codec, center=False), torch.randn(100, 40), []
    own = sketch_codes_triton.sketch_and_encode
    monkeypatch.setattr(sketch_codes_triton, "sketch_and_encode", lambda *a, **k: (passes.append(a), own(*a, **k)))
    found = compress(x.to(DEVICE), config, SEED)
    compress(x.to(DEVICE), replace(config, center=True), SEED)
    assert len(passes) == (codec in ("int8", "int2"))
    monkeypatch.setattr(sketch_codes_triton, "MAX_COLUMNS", 39)
    for own_tensor, other in zip(found.payload, compress(x.to(DEVICE), config, SEED).payload, strict=True):
        assert torch.equal(own_tensor, other)
