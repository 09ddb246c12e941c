"""The documentation site: every link leads somewhere, and pages read as they do on GitHub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip("mkdocs", reason="the documentation's packages are not installed: pip install -e .[docs]")
from markdown_it import MarkdownIt  # noqa: E402

PAGES = {f"docs/{page.name}": f"{page.stem}.html" for page in sorted((ROOT / "docs").glob("*.md"))} | {
    "README.md": "index.html",
    "CONTRIBUTING.md": "project/contributing.html",
    "CHANGELOG.md": "project/changelog.html",
    "traces/README.md": "project/traces.html",
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built strictly: whatever mkdocs warns of, a link or a heading that is not there among it, is an error (not with
    --quiet, which counts no warning).
    """
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def blocks(html: str) -> dict[str, int]:
    return {tag: len(re.findall(f"<{tag}[ >]", html)) for tag in ("li", "tr", "table", "ol", "ul", "h2", "h3")}


@pytest.mark.parametrize("source", PAGES)
def test_a_page_reads_as_on_github(site: Path, source: str) -> None:
    """As many lists, items, tables and rows as CommonMark sees: Python-Markdown alone reads many of them as text."""
    expected = blocks(MarkdownIt("commonmark", {"html": True}).enable("table").render((ROOT / source).read_text()))
    (article,) = re.findall(r"<article.*?</article>", (site / PAGES[source]).read_text(), flags=re.DOTALL)
    assert blocks(article) == expected


def test_reference_pages_are_of_the_code(site: Path) -> None:
    for page, word in {
        "settings": "when_balancedness_falls_by", "shipped_settings": "prefill.yaml", "python": "rebalance_experts",
        "commands": "eplb-plugin precompile", "metrics": "eplb_plugin_early_rebalances_total",
    }.items():  # fmt: skip
        assert word in (site / "reference" / f"{page}.html").read_text(), page


def test_nothing_is_asked_of_other_hosts_but_the_diagrams(site: Path) -> None:
    """No font, no style, no script: only the theme's own loader of mermaid, where a page has a diagram."""
    for page in site.rglob("*.html"):
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(?:https?:)?//", page.read_text()), page
