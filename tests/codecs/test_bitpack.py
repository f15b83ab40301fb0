"""Packing: every width and number of bits comes back, unused bits are 0, a row keeps to its own bytes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rmm_gnn.codecs.bitpack import pack, packed_width, unpack
from tests.examples import examples

BITS = pytest.mark.parametrize("bits", [1, 2, 4, 8])
FILL = 0xA5


def packed(codes, bits):
    """Pack into memory that was not clean before."""
    out = torch.full((codes.shape[0], packed_width(codes.shape[1], bits)), FILL, dtype=torch.uint8)
    pack(codes, out, bits)
    return out


def packed_one_by_one(codes, bits):
    """The layout spelled out: byte j of a row holds columns j, j + W, j + 2 W, ..., lowest bits first."""
    rows, columns = codes.shape
    width = -(-columns * bits // 8)
    result = [[0] * width for _ in range(rows)]
    for i in range(rows):
        for j in range(columns):
            result[i][j % width] |= int(codes[i, j]) << (bits * (j // width))
    return torch.tensor(result, dtype=torch.uint8).reshape(rows, width)


def random_codes(rows, columns, bits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2**bits, (rows, columns), dtype=torch.uint8, generator=generator)


@BITS
@pytest.mark.parametrize("columns", [*range(35), 63, 64, 65, 127, 128, 129])
def test_codes_come_back_from_the_documented_layout(bits, columns):
    codes = random_codes(3, columns, bits)
    stored = packed(codes, bits)
    assert stored.shape == (3, packed_width(columns, bits)) and packed_width(columns, bits) == -(-columns * bits // 8)
    assert torch.equal(stored, packed_one_by_one(codes, bits))
    assert torch.equal(unpack(stored, columns, bits), codes)


@BITS
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_codes_come_back_as_the_wanted_type(bits, dtype):
    codes = random_codes(4, 13, bits)
    back = unpack(packed(codes, bits), 13, bits, dtype)
    assert back.dtype == dtype and torch.equal(back, codes.to(dtype))


@BITS
def test_no_rows(bits):
    codes = torch.empty(0, 9, dtype=torch.uint8)
    assert unpack(packed(codes, bits), 9, bits).shape == (0, 9)


@BITS
def test_unused_bits_are_zero(bits):
    for columns in range(1, 18):
        ones = torch.full((2, columns), 2**bits - 1, dtype=torch.uint8)
        used = sum(int(byte).bit_count() for byte in packed(ones, bits)[0])
        assert used == columns * bits


@BITS
def test_changing_a_row_changes_no_other_row(bits):
    codes = random_codes(5, 11, bits)
    before = packed(codes, bits)
    codes[2] ^= 2**bits - 1
    changed = (packed(codes, bits) != before).any(1)
    assert changed.tolist() == [False, False, True, False, False]


@BITS
def test_argument_is_only_read_and_strides_do_not_matter(bits):
    codes = random_codes(22, 10, bits)
    for view in (codes.T, codes[::2, ::3], codes[:1].expand(7, 10)):
        copy = view.clone()
        stored = packed(view, bits)
        assert torch.equal(view, copy) and torch.equal(stored, packed(copy.contiguous(), bits))
        kept = stored.clone()
        back = unpack(stored.T.contiguous().T, view.shape[1], bits)
        assert torch.equal(back, copy) and torch.equal(stored, kept)


@examples(150)
@given(
    bits=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(0, 6),
    columns=st.integers(0, 70),
    seed=st.integers(0, 2**31),
)
def test_round_trip_of_any_codes(bits, rows, columns, seed):
    codes = random_codes(rows, columns, bits, seed)
    stored = packed(codes, bits)
    assert torch.equal(stored, packed_one_by_one(codes, bits))
    assert torch.equal(unpack(stored, columns, bits), codes)
