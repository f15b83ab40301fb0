"""No hub, and small products one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.nn.recording import one_thread


@pytest.fixture(autouse=True)
def small_products() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is looked up by mistake shall fail at once."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
