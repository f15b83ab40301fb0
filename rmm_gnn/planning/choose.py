"""Pick one choice for every item so that noise is least for the bytes, or bytes for the noise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple


class Cost(NamedTuple):
    """What a choice costs.

    Attributes:
        saved_bytes: Bytes it keeps.
        noise: Noise it adds.
    """

    saved_bytes: int
    noise: float


# Fields of a cost.
_BYTES, _NOISE = 0, 1


def choose(
    items: Sequence[Sequence[Cost]], *, max_bytes: int | None = None, max_noise: float | None = None
) -> list[int]:
    """Solve the multiple-choice knapsack to within one step of one item.

    Every item starts at its cheapest choice and goes along the lower convex hull of (bytes, noise); steps of all items
    are taken in the order of noise saved per byte, which is optimal for a budget that they fill.  A step that does not
    fit is passed over for smaller ones, and what is left then goes to any single change, on the hull or not, that saves
    most.

    Args:
        items: For every item its choices.
        max_bytes: Budget of all items together; minimises noise.
        max_noise: Or the most noise all items may add; minimises bytes.

    Returns:
        The index of each item's choice.  Where the cheapest choices exceed the budget, those; where the quietest exceed
        the noise, those.
    """
    hulls = [_hull(choices) for choices in items]
    steps = sorted(
        (_gain(choices[one], choices[other]), item, rank)
        for item, (choices, hull) in enumerate(zip(items, hulls, strict=True))
        for rank, (one, other) in enumerate(itertools.pairwise(hull))
    )
    chosen = [hull[0] for hull in hulls]
    saved = sum(choices[index].saved_bytes for choices, index in zip(items, chosen, strict=True))
    noise = sum(choices[index].noise for choices, index in zip(items, chosen, strict=True))
    blocked: set[int] = set()
    for _, item, rank in reversed(steps):
        if max_noise is not None and noise <= max_noise:
            break
        one, other = (items[item][index] for index in hulls[item][rank : rank + 2])
        if item in blocked or (max_bytes is not None and saved + other.saved_bytes - one.saved_bytes > max_bytes):
            blocked.add(item)  # its later steps start where this one ends
            continue
        chosen[item] = hulls[item][rank + 1]
        saved, noise = saved + other.saved_bytes - one.saved_bytes, noise + other.noise - one.noise
    if max_bytes is not None:
        _spend(items, chosen, max_bytes - saved, limited=_BYTES, wanted=_NOISE)
    elif max_noise is not None:
        _spend(items, chosen, max_noise - noise, limited=_NOISE, wanted=_BYTES)
    return chosen


def _gain(one: Cost, other: Cost) -> float:
    """Noise saved per byte by going from ``one`` to ``other``, which takes more bytes."""
    return (one.noise - other.noise) / (other.saved_bytes - one.saved_bytes)


def _hull(choices: Sequence[Cost]) -> list[int]:
    """Indices of the lower convex hull, from the fewest bytes to the least noise."""
    hull: list[int] = []
    for index in sorted(range(len(choices)), key=lambda index: choices[index]):
        new = choices[index]
        if hull and new.noise >= choices[hull[-1]].noise:
            continue
        while len(hull) > 1 and _gain(choices[hull[-2]], choices[hull[-1]]) <= _gain(choices[hull[-1]], new):
            hull.pop()
        hull.append(index)
    return hull


def _spend(items: Sequence[Sequence[Cost]], chosen: list[int], left: float, *, limited: int, wanted: int) -> None:
    """Spend what is left of one field of `Cost` on single changes, each time the one that saves most of the other."""
    while True:
        best = (0.0, -1, -1)
        for item, choices in enumerate(items):
            now = choices[chosen[item]]
            for index, choice in enumerate(choices):
                if choice[limited] - now[limited] <= left:
                    best = max(best, (now[wanted] - choice[wanted], item, index))
        saving, item, index = best
        if saving <= 0:
            return
        left -= items[item][index][limited] - items[item][chosen[item]][limited]
        chosen[item] = index
