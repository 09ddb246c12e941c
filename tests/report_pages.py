"""What a reader of a report sees: its text, and its charts as plotly.js is given them; and made-up inputs of one."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

from eplb_plugin.observe.rebalance_log import Rebalance

LOG = [Rebalance(1, (0.7, 0.99), (2.7, 2.1), 60, 144), Rebalance(2, (0.95, 0.98), (2.2, 2.0), 4, 144)]
# one of the outcomes in what `advise --json` prints
BEST = {"policy": "affinity", "dispatch": "cover", "redundant": 4}
FOUND = {
    "candidate": BEST, "work_saved": [0.1, 0.14], "copies_saved": [0.23, 0.25], "next_moves": [60, 64], "slots": 144,
    "break_even_tokens": None,
}  # fmt: skip


class Text(HTMLParser):
    """What stands in the page outside scripts and styles, and whether every element is closed."""

    VOID = ("meta", "link", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def charts(html: str) -> list[dict[str, Any]]:
    """In order; traces in `data`, `layout`."""
    found = re.findall(r'class="chart".*?<script type="application/json">(.*?)</script>', html, re.DOTALL)
    return [json.loads(one) for one in found]
