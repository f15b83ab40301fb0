"""How many examples a property is tried on."""

from hypothesis import settings


def examples(number: int) -> settings:
    """Try so many examples, or, under a profile that asks for more than 100, as many times more."""
    return settings(max_examples=max(1, number * settings.default.max_examples // 100))
