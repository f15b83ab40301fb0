"""The hashes and the permutation inside kernels, bit for bit those in plain torch."""

import pytest
import torch
import triton
import triton.language as tl

from rmm_gnn import permutation as plain
from rmm_gnn import seeding
from rmm_gnn.kernels.hashing_triton import hash_words, permuted, random_signs, round_keys, stream_key
from tests.kernels.device import DEVICE

BLOCK = 512
SIGNS = tl.constexpr(int(seeding.Stream.SIGNS))
SEEDS = [0, 2**40 + 5, 2**63 - 1]


@triton.jit
def _numbers(words, signs, rows, seed, num_rows, side_a, side_b, INDEX: tl.constexpr, BLOCK: tl.constexpr):
    key = tl.load(seed)
    low, high = stream_key(key, SIGNS)
    positions = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = positions < num_rows
    tl.store(words + positions, hash_words(positions, low, high).to(tl.int64), mask=inside)
    tl.store(signs + positions, random_signs(positions, low, high), mask=inside)
    places = tl.where(inside, positions, 0).to(INDEX)
    found = permuted(places, num_rows.to(INDEX), side_a.to(INDEX), side_b.to(INDEX), round_keys(key))
    tl.store(rows + positions, found, mask=inside)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_rows", [63, 100, 4097])
@pytest.mark.parametrize("index", [torch.int32, torch.int64], ids=["int32", "int64"])
def test_words_signs_and_permutation(num_rows, seed, index):
    seed = torch.tensor(seed, device=DEVICE)
    words = torch.empty(num_rows, dtype=torch.int64, device=DEVICE)
    signs = torch.empty(num_rows, device=DEVICE)
    rows = torch.empty(num_rows, dtype=index, device=DEVICE)
    _numbers[(triton.cdiv(num_rows, BLOCK),)](
        words,
        signs,
        rows,
        seed,
        num_rows,
        *plain.grid_sides(num_rows),
        INDEX=tl.int32 if index == torch.int32 else tl.int64,
        BLOCK=BLOCK,
    )
    expected = seeding.hash_index(seed, seeding.Stream.SIGNS, torch.arange(num_rows, device=DEVICE))
    assert torch.equal(words, expected)
    assert torch.equal(signs, seeding.random_signs(seed, 0, num_rows, torch.float32))
    assert torch.equal(rows, plain.permutation(seed, num_rows).to(index))
