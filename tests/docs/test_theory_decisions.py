"""The formulas of docs/theory.md for decisions, and the page itself: what is in its table exists."""

import math
import re
from pydoc import locate

import torch

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "theory.md").read_text()


def test_the_best_split_of_bytes():
    """Noise v_i/k_i at beta_i k_i bytes: the least is (sum sqrt(v_i beta_i))^2 over the bytes."""
    generator = torch.Generator().manual_seed(0)
    v, beta = torch.rand(5, generator=generator).double() + 0.1, torch.rand(5, generator=generator).double() + 0.1
    budget = 7.0
    best = (v / beta).sqrt() * budget / (v * beta).sqrt().sum()
    assert math.isclose(float((beta * best).sum()), budget)
    least = float((v * beta).sqrt().sum() ** 2 / budget)
    assert math.isclose(float((v / best).sum()), least)
    for number in range(100):
        k = torch.rand(5, generator=torch.Generator().manual_seed(number)).double() + 0.01
        k *= budget / (beta * k).sum()
        assert float((v / k).sum()) >= least * (1 - 1e-12)


def test_the_best_step_under_noise():
    """eta |g|^2 - L eta^2 (|g|^2 + V)/2 is greatest at |g|^2 / (L (|g|^2 + V))."""
    signal, smoothness, noise = 3.0, 2.0, 5.0

    def gain(eta):
        return eta * signal - smoothness * eta**2 / 2 * (signal + noise)

    best = signal / (smoothness * (signal + noise))
    assert all(gain(best) >= gain(best * factor) for factor in (0.5, 0.9, 1.1, 2.0))


def test_every_formula_has_its_place_in_the_table():
    labels = re.findall(r"^\$\$ \((\w[\w-]*)\)$", PAGE, flags=re.MULTILINE)
    assert len(labels) == len(set(labels)) >= 40
    assert len(labels) == PAGE.count("\n$$\n"), "every formula ends with '$$ (label)'"
    table = PAGE[PAGE.index("## Where each formula is") :]
    missing = [label for label in labels if f"{{eq}}`{label}`" not in table]
    assert not missing


def test_the_table_names_code_and_tests_that_exist():
    table = PAGE[PAGE.index("## Where each formula is") :]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| {eq}")]
    assert len(rows) >= 25
    for formulas, code, tests in rows:
        for name in re.findall(r"`(rmm_gnn[\w.]*)`", code):
            assert locate(name) is not None, name
        named = re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", tests)
        assert named, formulas
        for file, test in named:
            files = [ROOT / file] if file else (ROOT / "tests" / "docs").glob("test_theory_*.py")
            assert any(f"def {test}(" in path.read_text() for path in files), (file, test)
