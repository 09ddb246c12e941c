"""Markdown that GitHub reads, for Python-Markdown, which wants blank lines around blocks and four spaces a level."""

from __future__ import annotations

import re

_ITEM = re.compile(r"( *)([-*]|\d+\.) ")


def for_python_markdown(text: str) -> str:
    """The same page: a list or table begins after a blank line, and a list in a list is indented by four spaces."""
    lines: list[str] = []
    indents: list[int] = []  # of the items around this line, as written
    kind = fence = ""
    for line in text.splitlines():
        if fence or line.lstrip().startswith("```"):
            if not fence and kind and not indents:
                lines.append("")
            fence = "" if fence and line.strip() == "```" else fence or line
            lines.append(line)
            kind = "" if fence else "fence"
            continue
        item = _ITEM.match(line)
        before, kind = kind, _kind(line, item, indents)
        if before and kind and kind != before:
            lines.append("")
        if item:
            while indents and indents[-1] >= len(item[1]):
                indents.pop()
            line = "    " * len(indents) + line.lstrip()
            indents.append(len(item[1]))
        elif kind != "list":
            indents.clear()
        elif line.strip():
            line = "    " * len(indents) + line.lstrip()
        lines.append(line)
    return "\n".join(lines)


def _kind(line: str, item: re.Match[str] | None, indents: list[int]) -> str:
    """list: an item, or a line that goes on with one; table; text; nothing."""
    if not line.strip():
        return ""
    if line.startswith("|"):
        return "table"
    return "list" if item or indents else "text"
