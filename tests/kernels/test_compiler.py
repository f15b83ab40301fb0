"""Tests that need a compiler are skipped where CC names none, and not where it works."""

import pytest

from rmm_gnn.kernels import building
from tests.kernels import compiler


@pytest.mark.parametrize("name", ["false", "/no/such/compiler"])
def test_a_program_that_is_no_compiler_does_not_count(name, monkeypatch):
    monkeypatch.setenv("CC", name)
    assert building.find_compiler() == [name] and not compiler.works()


def test_one_that_answers_counts(monkeypatch):
    monkeypatch.setenv("CC", "true")
    assert compiler.works()
