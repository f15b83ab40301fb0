from __future__ import annotations

import pytest

from tests.nn.recording import one_thread


@pytest.fixture(autouse=True)
def small_products():
    with one_thread():
        yield
