"""Nearly equal blocks of positions, and how likely two rows share one."""

from __future__ import annotations


def block_start(block: int, num_rows: int, num_blocks: int) -> int:
    """First position of a block when ``num_rows`` positions are cut into ``num_blocks`` nearly equal blocks."""
    return block * num_rows // num_blocks


def pair_share(num_rows: int, num_blocks: int) -> float:
    """Probability that two different rows share a block: sum_t b_t (b_t - 1) / (B (B - 1)); 0 for a single row."""
    if num_rows == 1:
        return 0.0
    size, larger = divmod(num_rows, num_blocks)
    pairs = larger * (size + 1) * size + (num_blocks - larger) * size * (size - 1)
    return pairs / (num_rows * (num_rows - 1))
