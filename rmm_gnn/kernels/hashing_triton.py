"""The hashes of ``seeding`` and the permutation of ``permutation``, for use inside Triton kernels.

Words are unsigned 32-bit here, where a product wraps by itself; the numbers are those of the functions in plain torch,
bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from rmm_gnn.seeding import GOLDEN, HIGH_KEY, LOW_KEY, MULTIPLIER_1, MULTIPLIER_2, Stream

_GOLDEN = tl.constexpr(GOLDEN)
_LOW_KEY = tl.constexpr(LOW_KEY)
_HIGH_KEY = tl.constexpr(HIGH_KEY)
_MULTIPLIER_1 = tl.constexpr(MULTIPLIER_1)
_MULTIPLIER_2 = tl.constexpr(MULTIPLIER_2)
_PERMUTATION = tl.constexpr(int(Stream.PERMUTATION))


@triton.jit
def mix32(word):
    """``seeding.mix32`` of uint32 words."""
    word ^= word >> 15
    word *= tl.full((), _MULTIPLIER_1, tl.uint32)
    word ^= word >> 12
    word *= tl.full((), _MULTIPLIER_2, tl.uint32)
    return word ^ (word >> 15)


@triton.jit
def stream_key(seed, stream: tl.constexpr):
    """``seeding.stream_key``: the two uint32 keys of one stream of an int64 ``seed``."""
    first = mix32(seed.to(tl.uint32) + tl.full((), (stream * _GOLDEN) % 2**32, tl.uint32))
    second = mix32((seed >> 32).to(tl.uint32) ^ first)
    return mix32(first ^ tl.full((), _LOW_KEY, tl.uint32)), mix32(second ^ tl.full((), _HIGH_KEY, tl.uint32))


@triton.jit
def hash_words(index, low, high):
    """``seeding.hash_index`` of numbers below 2^32 under the keys of a stream."""
    return mix32(mix32(index.to(tl.uint32) ^ low) ^ high)


@triton.jit
def below(word, size):
    """Map uint32 words to [0, size), both halves of a 64-bit product apart: floor(word size / 2^32)."""
    return ((word.to(tl.uint64) * size.to(tl.uint64)) >> 32).to(tl.uint32)


@triton.jit
def random_signs(positions, low, high):
    """``seeding.random_signs`` at these positions, float32: bit i % 32 of word i // 32."""
    word = hash_words(positions // 32, low, high)
    bit = (word >> (positions % 32).to(tl.uint32)) & 1
    return 1.0 - 2.0 * bit.to(tl.float32)


@triton.jit
def round_keys(seed):
    """The keys of the permutation's six rounds, uint32."""
    low, high = stream_key(seed, _PERMUTATION)
    return (
        hash_words(tl.full((), 0, tl.uint32), low, high),
        hash_words(tl.full((), 1, tl.uint32), low, high),
        hash_words(tl.full((), 2, tl.uint32), low, high),
        hash_words(tl.full((), 3, tl.uint32), low, high),
        hash_words(tl.full((), 4, tl.uint32), low, high),
        hash_words(tl.full((), 5, tl.uint32), low, high),
    )


@triton.jit
def _feistel(cell, side_a, side_b, keys):
    """One pass through the network: a cell of the grid Z_a x Z_b to another one; int32 or int64 as ``cell`` is."""
    rows, columns = side_a.to(tl.uint32), side_b.to(tl.uint32)
    left = (cell // side_b).to(tl.uint32)
    right = (cell % side_b).to(tl.uint32)
    for turn in tl.static_range(3):
        left += below(mix32(right ^ keys[2 * turn]), rows)
        left = tl.where(left >= rows, left - rows, left)
        right += below(mix32(left ^ keys[2 * turn + 1]), columns)
        right = tl.where(right >= columns, right - columns, right)
    return left.to(cell.dtype) * side_b + right.to(cell.dtype)


@triton.jit
def permuted(positions, num_rows, side_a, side_b, keys):
    """``permutation(seed, num_rows)`` at these positions, all in [0, num_rows), flat.

    A cell outside walks on until it is inside: the walk of a position is the same whatever lies beside it.
    """
    cell = _feistel(positions, side_a, side_b, keys)
    while tl.max((cell >= num_rows).to(tl.int32)) > 0:
        cell = tl.where(cell >= num_rows, _feistel(cell, side_a, side_b, keys), cell)
    return cell
