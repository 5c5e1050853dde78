"""Every link in the documents leads to a file that exists, and to a heading in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"), *REPOSITORY.glob("tests/*.md")])
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_OUTSIDE = ("https://", "http://", "mailto:")


def _without_code(text: str) -> str:
    """The text without fenced blocks, and without what stands in backticks."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.*)$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{name}-{number}" if number else name) in found:
            number += 1
        found.add(anchor)
    return found


def broken_links(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    broken = []
    for link in _LINK.findall(_without_code(page.read_text())):
        if link.startswith(_OUTSIDE):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    assert broken_links(page) == []


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = (REPOSITORY / "docs/README.md").read_text()
    missing = [page.name for page in REPOSITORY.glob("docs/*.md") if f"({page.name}" not in listed]
    assert missing == ["README.md"]


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading: `code`, and more\n[a](#a-heading-code-and-more) [b](none.md) [c](#none) `[d](none)`\n"
    )
    assert broken_links(page) == ["none.md", "#none"]
