"""The choice is within a few per cent of the best one, which is found by trying all."""

import itertools
import random

import pytest

from rmm_gnn.planning.budget import parse_budget
from rmm_gnn.planning.choose import Cost, choose


def problem(seed, items=4, choices=6):
    """As in a model: each item's noise falls about as the inverse of its bytes, from different heights."""
    rng = random.Random(seed)
    return [
        [Cost(size := rng.randint(10, 400), height / size * rng.uniform(0.8, 1.25)) for _ in range(choices)]
        for height in [rng.uniform(1, 100) for _ in range(items)]
    ]


def total(items, indices):
    picked = [choices[index] for choices, index in zip(items, indices, strict=True)]
    return Cost(sum(cost.saved_bytes for cost in picked), sum(cost.noise for cost in picked))


def every(items):
    return [total(items, indices) for indices in itertools.product(*(range(len(choices)) for choices in items))]


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_near_the_least_for_the_bytes(seed):
    items = problem(seed)
    for budget in (200, 400, 800):
        found = total(items, choose(items, max_bytes=budget))
        allowed = [cost for cost in every(items) if cost.saved_bytes <= budget]
        if allowed:
            assert found.saved_bytes <= budget
            assert found.noise <= 1.3 * min(cost.noise for cost in allowed)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_are_near_the_fewest_for_the_noise(seed):
    items = problem(seed)
    possible = every(items)
    for target in (1.2 * min(cost.noise for cost in possible), sum(cost.noise for cost in possible) / len(possible)):
        found = total(items, choose(items, max_noise=target))
        assert found.noise <= target * (1 + 1e-12)
        assert found.saved_bytes <= 1.3 * min(cost.saved_bytes for cost in possible if cost.noise <= target)


def test_what_cannot_be_met_gives_the_nearest():
    items = problem(0)
    assert total(items, choose(items, max_bytes=0)).saved_bytes == min(cost.saved_bytes for cost in every(items))
    quietest = min(cost.noise for cost in every(items))
    assert total(items, choose(items, max_noise=0.0)).noise == pytest.approx(quietest)


def test_choices_that_nobody_would_take_are_not_taken():
    items = [[Cost(10, 5.0), Cost(20, 6.0), Cost(30, 1.0), Cost(30, 0.5)]]
    assert [choose(items, max_bytes=budget) for budget in (10, 29, 30, 99)] == [[0], [0], [3], [3]]


@pytest.mark.parametrize(
    ("text", "size"),
    [(7, 7), ("7B", 7), ("2 KiB", 2048), ("2kb", 2000), ("1.5GiB", 3 * 2**29), (".5 MB", 500_000), ("10%", 100)],
)
def test_budgets_as_people_write_them(text, size):
    assert parse_budget(text, 1000) == size


@pytest.mark.parametrize(
    ("budget", "error", "match"),
    [
        ("2 parsecs", ValueError, "'budget' must be bytes or a share .*'2 parsecs'"),
        ("0%", ValueError, "'budget' must be positive"),
        (-3, ValueError, "'budget' must be positive"),
        (2.5, TypeError, "'budget' must be a number of bytes or a text"),
    ],
)
def test_budgets_that_are_none(budget, error, match):
    with pytest.raises(error, match=match):
        parse_budget(budget, 1000)
