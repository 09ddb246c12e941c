"""One HTML file: what comes from outside is escaped, and the browser may load nothing."""

from __future__ import annotations

import json
import re

import numpy as np

from eplb_plugin.observe.page import cell_values, figure, page, table


def test_a_page_stands_alone() -> None:
    """Its policy forbids every request; title and headings are escaped, sections are HTML already, in order."""
    html = page("a < b", [("one & two", "<p>1</p>"), ("three", "<p>2</p>")])
    assert html.startswith("<!DOCTYPE html>")
    assert "default-src 'none'" in html
    assert html.count("a &lt; b") == 2
    assert "a < b" not in html
    assert html.index("<h2>one &amp; two</h2><p>1</p>") < html.index("<h2>three</h2><p>2</p>")
    assert not re.search(r"(?:src|href)=.?(?:https?:|//)", html)


def test_tables_and_figures() -> None:
    """Cells as given, captions escaped; only a figure that shows values has a place for them."""
    made = table(["a", "b"], [["1", "<i>2</i>"], ["3", "4"]])
    assert re.findall(r"<t[hd]>(.*?)</t[hd]>", made) == ["a", "b", "1", "<i>2</i>", "3", "4"]
    assert made.count("<tr>") == 3
    assert "<output>" not in figure("<svg/>", "c")
    assert "<figcaption>&lt;c</figcaption><svg/>v<output></output>" in figure("<svg/>", "<c", "v")


def test_values_of_cells_are_json() -> None:
    """Three digits of each, under the picture's id, with what rows and columns are called."""
    html = cell_values("load1", np.array([[0.12345, 2.0]]), [7], [0, 1], ("layer", "rank"))
    assert 'id="load1"' in html
    content = json.loads(re.search(">(.*)<", html).group(1))  # type: ignore[union-attr]
    assert content == {"rows": [7], "columns": [0, 1], "values": [[0.123, 2.0]], "names": ["layer", "rank"]}
