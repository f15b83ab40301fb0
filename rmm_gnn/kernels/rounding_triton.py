"""How numbers are rounded where bytes must be those of plain torch: to nearest, downwards, upwards, at random."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _directed_float32(value, UP: tl.constexpr):
    """Round float64 to float32 upwards or downwards; float32 as it is."""
    if value.dtype == tl.float64:
        nearest = value.to(tl.float32)
        back = nearest.to(tl.float64)
        wrong = back < value if UP else back > value
        bits = nearest.to(tl.int32, bitcast=True)
        outwards = (nearest > 0) == UP  # away from zero: the next number has the next pattern
        moved = tl.where(outwards, bits + 1, bits - 1)
        tiny = tl.full((), 1 if UP else -0x7FFFFFFF, tl.int32)  # the first pattern after zero, on the side asked for
        moved = tl.where(nearest == 0, tiny, moved)
        value = tl.where(wrong, moved, bits).to(tl.float32, bitcast=True)
    return value


@triton.jit
def directed(value, UP: tl.constexpr, BF16: tl.constexpr):
    """Round to float32, or to those of its numbers that bfloat16 holds, upwards or downwards; nan stays nan."""
    value = _directed_float32(value, UP)
    if BF16:
        bits = value.to(tl.uint32, bitcast=True)
        kept = bits & tl.full((), 0xFFFF0000, tl.uint32)
        outwards = ((bits >> 31) == 0) if UP else ((bits >> 31) == 1)
        kept = tl.where(outwards & (kept != bits), kept + 0x10000, kept)
        rounded = kept.to(tl.float32, bitcast=True)
        # Patterns of nan must not be counted up, into those of another number.
        value = tl.where(value == value, rounded, value)
    return value


@triton.jit
def divide(value, by):
    """Round to nearest, as plain torch does; `/` of float32 is faster and may be off by two units in the last place."""
    return tl.div_rn(value, by) if value.dtype == tl.float32 else value / by


@triton.jit
def uniform(words):
    """Numbers on the grid of 2^-24 in [0, 1)."""
    return (words >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def offset_and_step(low, high, odd, LEVELS: tl.constexpr, ACCUMULATE: tl.constexpr, BF16: tl.constexpr):
    """Offset, rounded downwards, and step, upwards, of ranges; nan where entries are odd or the range overflows."""
    low = tl.where(odd | (high - low == float("inf")), float("nan"), low)
    offset = directed(low, False, BF16)
    step = divide(high - offset.to(ACCUMULATE), tl.full(low.shape, LEVELS, ACCUMULATE))
    return offset, directed(step, True, BF16)


@triton.jit
def random_level(values, offset, step, noise, BITS: tl.constexpr):
    """Codes, int32: steps above the offset plus the fractional part of ``noise``, rounded down; nan gets 0."""
    noise = tl.where(noise >= 1, noise - 1, noise)
    level = divide(values - offset, tl.where(step == 0, 1.0, step)) + noise
    # The sum can round up to the next whole number, one code too high.
    return tl.minimum(tl.where(level == level, level, 0.0), 2**BITS - 1).to(tl.int32)
