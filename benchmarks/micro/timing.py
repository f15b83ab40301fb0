"""Times of calls that take turns in one process, and what a table says of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from benchmarks.harness.measure import stopwatch

# Calls that take less than this are run several times for one timing of them.
SHORT_S = 2e-3


class Spread(NamedTuple):
    """A median between the 20 % and the 80 % quantile."""

    low: float
    median: float
    high: float

    def format(self, digits: int, factor: float = 1.0) -> str:
        """The median, with the quantiles behind it."""
        low, median, high = (f"{factor * value:.{digits}f}" for value in self)
        return f"{median} ({low} - {high})"


def spread(values: Sequence[float]) -> Spread:
    """Median and quantiles of one value or more."""
    if len(values) == 1:
        return Spread(*values * 3)
    low, *_, high = statistics.quantiles(values, n=5, method="inclusive")
    return Spread(low, statistics.median(values), high)


def ratios(seconds: Sequence[float], reference_s: Sequence[float]) -> Spread:
    """How many times as long as the reference of the same round: what slows a round down slows both down."""
    return spread([own / other for own, other in zip(seconds, reference_s, strict=True)])


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    *,
    repeat: int | Mapping[str, int] = 1,
) -> dict[str, list[float]]:
    """Time every call once a round, after one round that does not count.

    Args:
        calls: What to time, by name; the order changes from round to round.
        rounds: How often.
        device: Work queued there counts.
        repeat: Runs of a call for one timing of it, of all or by name; the time is that of one.

    Returns:
        Seconds of every round, by name.
    """
    names = list(calls)
    runs = repeat if isinstance(repeat, Mapping) else dict.fromkeys(names, repeat)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            taken: list[float] = []
            with stopwatch(device, taken):
                for _ in range(runs[name]):
                    calls[name]()
            if number:
                seconds[name].append(taken[0] / runs[name])
    return seconds


def repeats(calls: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, int]:
    """How often to run each call for one timing of it, so that none takes less than ``SHORT_S``; runs each twice."""
    return {name: max(1, round(SHORT_S / taken)) for name, (taken,) in interleaved(calls, 1, device).items()}
