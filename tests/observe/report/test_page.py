"""One HTML file: what comes from outside is escaped, and the browser may load nothing."""

from __future__ import annotations

import builtins
import re
from importlib import import_module
from typing import Any

import pytest

from eplb_plugin import PluginError
from eplb_plugin.observe.report.charts import chart
from eplb_plugin.observe.report.page import page


def test_a_page_stands_alone() -> None:
    """Its policy forbids every request; title and headings are escaped, sections are HTML already, in order."""
    html = page("a < b", [("one & two", "<p>1</p>"), ("three", "<p>2</p>")])
    assert html.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in html
    assert html.count("a &lt; b") == 2
    assert "a < b" not in html
    assert html.index("<h2>one &amp; two</h2><p>1</p>") < html.index("<h2>three</h2><p>2</p>")
    assert not re.search(r"(?:src|href)=.?(?:https?:|//)", html)
    assert "Plotly" not in html  # no chart, no library


def test_charts_need_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, one line says what to install; with it, it stands in the page once, however many charts there are."""
    drawn = chart("c", [], {})
    real = builtins.__import__

    def without(name: str, *words: Any) -> Any:
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *words)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        with pytest.raises(PluginError, match=r"found no package plotly, .*eplb-plugin\[report\]"):
            page("t", [("s", drawn)])
    monkeypatch.setattr(import_module("eplb_plugin.observe.report.page"), "library", lambda: "LIBRARY")
    assert page("t", [("s", drawn + drawn)]).count("LIBRARY") == 1
