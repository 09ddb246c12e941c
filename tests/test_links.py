"""Links of the README and the documents lead somewhere: to a file of this repository, and to a heading that it has."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    {*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("patches/**/*.md"), ROOT / "traces/README.md"}
)


def links(page: Path) -> Iterator[str]:
    """Targets within this repository; code is left out."""
    text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in target:
            yield target


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    problems = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            problems.append(target)
    return problems


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert broken(page) == []


def test_every_document_can_be_found_from_the_readme() -> None:
    """By links alone, over other pages."""
    reached, left = {ROOT / "README.md"}, [ROOT / "README.md"]
    while left:
        page = left.pop()
        for target in links(page):
            file = (page.parent / target.partition("#")[0]).resolve()
            if file.suffix == ".md" and file.exists() and file not in reached:
                reached.add(file)
                left.append(file)
    assert {page for page in PAGES if page.parent == ROOT / "docs"} <= reached


def test_the_readme_is_short() -> None:
    """Whoever opens it decides in half a minute whether to read on."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    """A file that is gone, a heading that is gone; code and addresses of others are no links of ours."""
    page = tmp_path / "page.md"
    page.write_text("# One\n[a](#one) [b](#two) [c](gone.md) [d](page.md#one) [e](https://x.org) `[f](gone.md)`\n")
    assert broken(page) == ["#two", "gone.md"]
