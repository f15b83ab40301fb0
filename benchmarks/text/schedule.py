"""fairseq's learning rate: a linear rise over the warm-up steps, then a linear fall to 0."""

from __future__ import annotations


def lr_factor(step: int, total: int, warmup_share: float) -> float:
    """What the learning rate is multiplied by.

    Args:
        step: Steps done before.
        total: Steps in all.
        warmup_share: Of them, that share rises.

    Returns:
        A factor in (0, 1]; 0 after the last step.
    """
    warmup = round(warmup_share * total)
    if step < warmup:
        return (step + 1) / warmup
    return max(0, total - step) / max(1, total - warmup)
