"""A random permutation that is computed per index, so that nothing is stored and a kernel can recompute any part."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rmm_gnn.seeding import Stream, hash_index, hash_words

# A smaller domain mixes too slowly under Feistel rounds; tiny permutations walk through a 16 x 16 grid instead.
# Half of the rounds update either half.
_MIN_SIDE = 16
ROUNDS = 6


def permutation(seed: Tensor, num_rows: int, start: int = 0, stop: int | None = None) -> Tensor:
    """Entries [start, stop) of a random permutation of ``num_rows`` rows.

    A keyed Feistel network on the grid Z_a x Z_b with a*b barely above ``num_rows`` (halves are updated in turn by
    adding a hash of the other half, modulo its side), followed by cycle walking for the few indices that land outside.
    The walk is resolved for all of them at once by pointer doubling, so it needs no data-dependent loop and never
    synchronises with the host.

    Args:
        seed: Scalar int64 tensor.
        num_rows: Size of the permuted set, B.
        start: First position wanted.
        stop: End of the positions wanted; ``num_rows`` if None.

    Returns:
        Tensor [stop - start] of int32, or of int64 from about 2^31 rows on; over [0, num_rows) every row number occurs
        exactly once.

    Example:
        >>> permutation(torch.tensor(3), 6).sort().values
        tensor([0, 1, 2, 3, 4, 5], dtype=torch.int32)

    References:
        J. Black and P. Rogaway, *Ciphers with Arbitrary Finite Domains*, CT-RSA 2002 (the grid and the cycle walk).
    """
    stop = num_rows if stop is None else stop
    side_a, side_b = grid_sides(num_rows)
    excess = side_a * side_b - num_rows
    # Eight times the speed of int64 on a processor with vector instructions.
    dtype = torch.int32 if side_a * side_b < 2**31 else torch.int64
    if stop == num_rows:
        cells = torch.arange(start, num_rows + excess, dtype=dtype, device=seed.device)
    else:
        inside = torch.arange(start, stop, dtype=dtype, device=seed.device)
        cells = torch.cat([inside, torch.arange(num_rows, num_rows + excess, dtype=dtype, device=seed.device)])

    image, outside = _feistel(cells, side_a, side_b, seed).split([stop - start, excess])
    for _ in range(excess.bit_length()):
        outside = _walk_once(outside, outside, num_rows)
    return _walk_once(image, outside, num_rows) if excess else image


def grid_sides(num_rows: int) -> tuple[int, int]:
    """Return a >= b of the grid whose cells are permuted: a*b is at least ``num_rows``, and little more."""
    side_a = max(_MIN_SIDE, math.isqrt(max(num_rows - 1, 0)) + 1)
    return side_a, max(_MIN_SIDE, -(-num_rows // side_a))


def _walk_once(image: Tensor, outside: Tensor, num_rows: int) -> Tensor:
    return torch.where(image < num_rows, image, outside.index_select(0, (image - num_rows).clamp_(min=0)))


def _feistel(index: Tensor, side_a: int, side_b: int, seed: Tensor) -> Tensor:
    """Permute cells of the grid Z_a x Z_b, a >= b, numbered row by row."""
    # What each round adds, for every value of the half that it reads: a table beats a hash of each index.
    round_keys = hash_index(seed, Stream.PERMUTATION, torch.arange(ROUNDS, device=seed.device))
    words = hash_words(torch.arange(side_a, device=seed.device), round_keys.unsqueeze(1))
    to_left = ((words[0::2] * side_a) >> 32).to(index.dtype)
    to_right = ((words[1::2] * side_b) >> 32).to(index.dtype)

    left = torch.div(index, side_b, rounding_mode="floor")
    right = index - left * side_b
    for left_table, right_table in zip(to_left, to_right, strict=True):
        _add_modulo(left, left_table.index_select(0, right), side_a)
        _add_modulo(right, right_table.index_select(0, left), side_b)
    return left.mul_(side_b).add_(right)


def _add_modulo(half: Tensor, addend: Tensor, side: int) -> None:
    """``half = (half + addend) % side`` in place, for both in [0, side): a masked add is faster than a comparison."""
    half.add_(addend).sub_(side)
    sign_bit = 8 * half.element_size() - 1
    half.add_((half >> sign_bit) & side)
