"""Links between files of the repository, as links between pages of the site."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType

# pages of the site that are not in docs/
ADDED: Mapping[str, str] = MappingProxyType(
    {
        "README.md": "index.md",
        "CONTRIBUTING.md": "project/contributing.md",
        "CHANGELOG.md": "project/changelog.md",
        "traces/README.md": "project/traces.md",
        "patches/cpu_engines/README.md": "project/cpu_engines.md",
        "patches/deep_ep/README.md": "project/deep_ep.md",
    }
)
SHIPPED = "reference/shipped_settings.md"


def site_links(text: str, source: str, page: str) -> str:
    """A page's text as the site has it. source: its path in the repository; page: in the site.

    A link that has no place in the site stays as it is: the strict build then names it.
    """

    def moved(link: re.Match[str]) -> str:
        path, _, anchor = link[1].partition("#")
        if not path or "://" in path:
            return link[0]
        target = _page_of(posixpath.normpath(posixpath.join(posixpath.dirname(source), path)))
        if target is None:
            return link[0]
        name, own_anchor = target
        place = f"#{anchor or own_anchor}" if anchor or own_anchor else ""
        return f"]({posixpath.relpath(name, posixpath.dirname(page))}{place})"

    return re.sub(r"\]\(([^)\s]+)\)", moved, text)


def _page_of(path: str) -> tuple[str, str] | None:
    """Of a path of the repository: the page, and the place on it."""
    if path in ADDED:
        return ADDED[path], ""
    parts = PurePosixPath(path).parts
    if parts[0] == "docs":
        return posixpath.join(*parts[1:]), ""
    if parts[0] == "configs":
        return SHIPPED, "" if len(parts) == 1 else parts[1].replace(".", "")
    return None
