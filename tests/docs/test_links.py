"""Relative links in Markdown lead to files that exist, and their anchors to headings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
    *sorted((ROOT / "benchmarks").rglob("README.md")),
]
_LINK = re.compile(r"\]\(([^()\s]+)\)")


def prose(text: str) -> str:
    """The text without blocks of code, and without code in a line."""
    return re.sub(r"`[^`\n]+`", "`code`", re.sub(r"^(```+).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE))


def links(text: str) -> list[str]:
    """Targets that are no address on the web."""
    return [target for target in _LINK.findall(prose(text)) if not re.match(r"[a-z]+:", target)]


def anchors(text: str) -> set[str]:
    """What GitHub makes of the headings, and labels of MyST."""
    headings = re.findall(
        r"^#+ +(.*?) *$", re.sub(r"^(```+).*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    made: set[str] = set()
    for heading in headings:
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
        number = sum(other == name or re.fullmatch(re.escape(name) + r"-\d+", other) is not None for other in made)
        made.add(f"{name}-{number}" if number else name)
    return made | set(re.findall(r"^\(([\w-]+)\)=$", text, flags=re.MULTILINE))


def broken(page: Path, text: str) -> list[str]:
    """The links of a page that lead nowhere."""
    found = []
    for target in links(text):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists() or (
            anchor and (goal.suffix != ".md" or anchor not in anchors(text if goal == page else goal.read_text()))
        ):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    assert not broken(page, page.read_text())


def test_there_are_links():
    assert len(links(PAGES[0].read_text())) > 20


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[a](README.md) ![b](docs/frontier.png) [c](https://nowhere.example/x#y)", []),
        ("[a](NOTHING.md)", ["NOTHING.md"]),
        ("# One thing, `and` more\n[a](#one-thing-and-more) [b](#another)", ["#another"]),
        ("[a](CONTRIBUTING.md#laws) [b](CONTRIBUTING.md#nothing)", ["CONTRIBUTING.md#nothing"]),
        ("## Same\n## Same\n[a](#same) [b](#same-1) [c](#same-2)", ["#same-2"]),
        ("```\n[a](NOTHING.md)\n# In code\n```\n`[b](NOTHING.md)` [c](#in-code)", ["#in-code"]),
        ("[![picture](NOTHING.png)](README.md) [x [y]](NOTHING.md)", ["NOTHING.png", "NOTHING.md"]),
    ],
)
def test_what_is_broken_is_found(text, wrong):
    found = broken(ROOT / "README.md", text)
    assert found == wrong
