"""The only code that touches random state: a seed is drawn here, everything else is a hash of (seed, stream, index).

A number that is a function of (seed, index) needs no storage, can be recomputed by a kernel in any order, and is the
same on every device.  All arithmetic is on unsigned 32-bit words held in int64 lanes; both multipliers of the mixing
function are below 2^31, so no product overflows and the result does not depend on a backend's overflow rule.
"""

from __future__ import annotations

from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

_WORD = 0xFFFFFFFF
# Constants of the hash, which kernels use as well.
GOLDEN = 0x9E3779B9
LOW_KEY = 0x243F6A88
HIGH_KEY = 0x85A308D3
MULTIPLIER_1 = 0x2C1B3C6D
MULTIPLIER_2 = 0x297A2D39


# A 32-bit key, read on the host (CPU) or left on the device.
Key = Tensor | int


class Stream(IntEnum):
    """Independent uses of one seed.  Signs, permutation, rounding and dropout never read the same stream."""

    SIGNS = 1
    PERMUTATION = 2
    ENTRY_ROWS = 3
    ENTRY_COLUMNS = 4
    SAMPLING = 5
    ROUNDING = 6
    DROPOUT = 7
    RANK = 8
    ROUNDING_COLUMNS = 9
    DROPOUT_LANES = 10
    FACTORS = 11


def draw_seed(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw a fresh seed from PyTorch's default generator of ``like``'s device, or from ``generator``.

    The seed stays on the device (no synchronisation).  In a distributed job the rank is mixed in, so that ranks which
    call ``torch.manual_seed`` with one number still draw different sketches.  Under ``torch.compile`` the default
    generator is read by an opaque operator, which the compiler can neither merge with another draw nor repeat in
    backward; a ``generator`` of its own breaks the graph.

    Args:
        like: A tensor on the wanted device; its values are not read.
        generator: Source of randomness instead of the default generator; may live on another device.

    Returns:
        A scalar int64 tensor on ``like.device``.

    Example:
        >>> x = torch.zeros(3)
        >>> bool(draw_seed(x) != draw_seed(x))
        True
    """
    if generator is None:
        # The operator gets a scalar of its own: the compiler would merge two draws that take one and the same tensor,
        # and layers that read the same x would share S.  It never merges calls of ``empty``.
        return torch.ops.rmm_gnn.draw_seed(torch.empty((), dtype=torch.int64, device=like.device))
    return _draw(generator.device, generator).to(like.device, non_blocking=True)


@torch.library.custom_op("rmm_gnn::draw_seed", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _draw_seed_op(like: Tensor) -> Tensor:
    return _draw(like.device, None)


@_draw_seed_op.register_fake
def _(like: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=like.device)


def _draw(device: torch.device, generator: torch.Generator | None) -> Tensor:
    seed = torch.empty((), dtype=torch.int64, device=device).random_(generator=generator)
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    if rank:
        seed = _another(seed, Stream.RANK, rank)
    return seed


def derived_seed(seed: Tensor, number: int) -> Tensor:
    """Return another seed, a function of ``seed`` and ``number``: for a part that reads streams which others read."""
    return _another(seed, Stream.FACTORS, number)


def _another(seed: Tensor, stream: Stream, number: int) -> Tensor:
    words = hash_index(seed, stream, torch.arange(2 * number, 2 * number + 2, device=seed.device))
    return words[0] * 2**31 + words[1]


def mix32(word: Tensor) -> Tensor:
    """Bijective avalanche of 32-bit words: xor-shift and multiply, twice.  Works in place on its argument.

    Args:
        word: int64 tensor with values in [0, 2^32); overwritten.

    Returns:
        ``word``, mixed.

    References:
        The shift-multiply construction and these constants are those of the H2 database's integer hash, as measured in
        C. Wellons, *Prospecting for Hash Functions* (2018).
    """
    word ^= word >> 15
    word *= MULTIPLIER_1
    word &= _WORD
    word ^= word >> 12
    word *= MULTIPLIER_2
    word &= _WORD
    word ^= word >> 15
    return word


def stream_key(seed: Tensor, stream: int) -> tuple[Key, Key]:
    """Return the two 32-bit keys of one stream of ``seed``: scalar tensors, or ints where reading it costs nothing."""
    if seed.device.type == "cpu":
        # Forty operations on a scalar tensor would take longer than all else for a small input.
        first = _mix_int((int(seed) + stream * GOLDEN) & _WORD)
        second = _mix_int(((int(seed) >> 32) & _WORD) ^ first)
        return _mix_int(first ^ LOW_KEY), _mix_int(second ^ HIGH_KEY)
    low = mix32(((seed & _WORD) + stream * GOLDEN) & _WORD)
    high = mix32(((seed >> 32) & _WORD) ^ low)
    # The keys must not be each other's image under mix32: for a seed below 2^32, high is mix32(low) here, and index 0
    # would hash to 0 whatever the seed.
    return mix32(low ^ LOW_KEY), mix32(high ^ HIGH_KEY)


def _mix_int(word: int) -> int:
    word = ((word ^ (word >> 15)) * MULTIPLIER_1) & _WORD
    word = ((word ^ (word >> 12)) * MULTIPLIER_2) & _WORD
    return word ^ (word >> 15)


def hash_words(word: Tensor, key: Key) -> Tensor:
    """One keyed round: 32-bit words in int64 lanes -> the same, without changing the argument."""
    # An int32 tensor would stay int32 beside a scalar tensor, and overflow.
    return mix32(word.to(torch.int64) ^ key)


def hash_index(seed: Tensor, stream: int, index: Tensor) -> Tensor:
    """Hash row or column numbers to 32-bit words: two rounds with the stream's two keys.

    Args:
        seed: Scalar int64 tensor.
        stream: Which of the seed's independent streams to read.
        index: Integer tensor of any shape, values in [0, 2^32).

    Returns:
        int64 tensor of ``index``'s shape with values in [0, 2^32).
    """
    low, high = stream_key(seed, stream)
    word = hash_words(index, low)
    word ^= high
    return mix32(word)


def random_signs(seed: Tensor, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Independent +-1 for the indices [start, stop) (the diagonal D of a sketch): one hash gives 32 of them."""
    first, last = start // 32, (stop + 31) // 32
    words = hash_index(seed, Stream.SIGNS, torch.arange(first, last, device=seed.device))
    return signs_of_words(words)[start - 32 * first : stop - 32 * first].to(dtype)


def signs_of_words(words: Tensor) -> Tensor:  # [*, C] -> [*, 32 C]
    """Spell the 32 bits of each word as float32 signs, lowest bit first."""
    shifts = torch.arange(0, 32, 8, device=words.device)
    octets = ((words.unsqueeze(-1) >> shifts) & 0xFF).flatten(-2).to(torch.int32)
    bits = (torch.arange(256, device=words.device).unsqueeze(1) >> torch.arange(8, device=words.device)) & 1
    table = bits.to(torch.float32).mul_(-2.0).add_(1.0)
    return torch.nn.functional.embedding(octets, table).flatten(-2)


def uniform(seed: Tensor, stream: int, index: Tensor) -> Tensor:
    """Independent numbers in (0, 1), float64, for every index."""
    return hash_index(seed, stream, index).to(torch.float64).add_(0.5).mul_(2.0**-32)
